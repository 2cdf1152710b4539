"""A result as one HTML page with pictures drawn by hand (SVG): no script, nothing loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from penstock.loadgen.report import NAMES, figures, load_text
from penstock.loadgen.result import Result, quantiles

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 260, 64, 34, 12
COLOURS = {"ttft": "#0a6ebd", "itl": "#c2410c", "e2e": "#15803d"}

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p { color: var(--soft); margin-top: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem 1rem .15rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: normal; }
td:first-child, th:first-child { text-align: left; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .curve { fill: none; stroke-width: 1.8; }
"""

Point = tuple[float, float]


def render_html(result: Result) -> str:
    """The page."""
    tiles = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in figures(result))
    errors = "".join(f"<tr><td>{escape(kind)}</td><td>{num:,}</td></tr>" for kind, num in result.errors.items())
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>penstock bench</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(result.plan.url)}</h1><p>penstock bench: {escape(load_text(result))}</p>",
        f"<table>{tiles}</table>",
        f"<h2>Latency (ms)</h2>{_latency_table(result)}",
        f"<h2>Share of values at or below a latency</h2>{_distribution(result)}",
        f"<h2>Tokens per second over time</h2>{_over_time([(at, tokens) for at, tokens, _ in result.timeline])}",
        f"<h2>Answers per second over time</h2>{_over_time([(at, answers) for at, _, answers in result.timeline])}",
        f"<h2>Errors</h2><table>{errors}</table>" if errors else "",
        "</body></html>\n",
    ]
    return "".join(parts)


def _latency_table(result: Result) -> str:
    columns = ("p50", "p90", "p99", "max", "mean")
    rows = []
    for name, shown in NAMES.items():
        found = quantiles(result.latencies[name])
        if found is not None:
            cells = "".join(f"<td>{found[column]:,.2f}</td>" for column in columns)
            rows.append(f"<tr><td>{escape(shown)}</td>{cells}</tr>")
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _distribution(result: Result) -> str:
    """Cumulative shares over a logarithmic axis of milliseconds."""
    curves = {}
    for name in COLOURS:
        histogram = result.latencies[name]
        points = [(max(value / 1e6, 0.01), share) for value, share in histogram.cumulative()]
        if points:
            curves[name] = [(points[0][0], 0.0), *points]
    if not curves:
        return "<p>Nothing was measured.</p>"
    low = math.floor(math.log10(min(points[0][0] for points in curves.values())))
    high = max(low + 1, math.ceil(math.log10(max(points[-1][0] for points in curves.values()))))
    marks = [(10.0**power, f"{10.0**power:g} ms") for power in range(low, high + 1)]

    def x_of(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - 10)

    body = [_x_mark(x_of(value), text) for value, text in marks]
    body += [_y_mark(_y(share, 1.0), f"{share:.0%}") for share in (0.0, 0.5, 0.9, 1.0)]
    for number, (name, points) in enumerate(curves.items()):
        body.append(_curve([(x_of(value), _y(share, 1.0)) for value, share in points], COLOURS[name]))
        body.append(
            f"<text x='{WIDTH - 12}' y='{HEIGHT - BOTTOM - 50 + 15 * number}' text-anchor='end' "
            f"style='fill:{COLOURS[name]}'>{escape(NAMES[name])}</text>"
        )
    return _svg(body)


def _over_time(points: Sequence[Point]) -> str:
    if len(points) < 2:
        return "<p>Too short to be drawn.</p>"
    last = points[-1][0]
    top = _round_up(max(value for _, value in points) * 1.05)

    def x_of(at: float) -> float:
        return LEFT + at / last * (WIDTH - LEFT - 10)

    body = [_y_mark(_y(top * part / 4, top), f"{top * part / 4:,.6g}") for part in range(5)]
    body += [_x_mark(x_of(last * part / 5), f"{last * part / 5:.1f} s") for part in range(6)]
    body.append(_curve([(x_of(at), _y(value, top)) for at, value in points], COLOURS["ttft"]))
    return _svg(body)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10, 20) if step * power >= value)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP)


def _x_mark(x: float, text: str) -> str:
    return (
        f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}'/>"
        f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{text}</text>"
    )


def _y_mark(y: float, text: str) -> str:
    return (
        f"<line class='grid' x1='{LEFT}' x2='{WIDTH - 10}' y1='{y:.1f}' y2='{y:.1f}'/>"
        f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>"
    )


def _curve(points: Sequence[Point], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline class='curve' stroke='{colour}' points='{path}'/>"


def _svg(body: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{''.join(body)}</svg>"
