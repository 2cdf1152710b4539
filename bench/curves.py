"""Curves over two logarithmic axes as an SVG of its own, readable on light and on dark ground.

No style sheet and no background: pages show it as an image, some of them without styles. Knows nothing of what it
draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 720, 320, 64, 96, 48, 28
SOFT = "#808080"  # as far from white as from black
COLOURS = ("#2f81f7", "#d9730d", "#cf3a4b", "#2e9e56", "#8957e5")

Point = tuple[float, float]


def render_svg(curves: Mapping[str, Sequence[Point]], title: str, x_says: str, y_says: str) -> str:
    """Each curve with its name at its end. Raises `ValueError` when there is nothing to draw, or a value ≤ 0."""
    points = [point for curve in curves.values() for point in curve]
    if not points or min(min(point) for point in points) <= 0:
        raise ValueError("nothing that has a logarithm")
    x_marks, y_marks = _marks([x for x, _ in points], (1,)), _marks([y for _, y in points], (1, 2, 5))

    def x_of(value: float) -> float:
        return LEFT + _share(value, x_marks) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, y_marks) * (HEIGHT - BOTTOM - TOP)

    body = [f"<title>{escape(title)}</title>"]
    for mark in x_marks:
        body.append(_line(x_of(mark), TOP, x_of(mark), HEIGHT - BOTTOM))
        body.append(_text(x_of(mark), HEIGHT - BOTTOM + 16, f"{mark:,g}", "middle"))
    for mark in y_marks:
        body.append(_line(LEFT, y_of(mark), WIDTH - RIGHT, y_of(mark)))
        body.append(_text(LEFT - 6, y_of(mark) + 4, f"{mark:,g}", "end"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_says, "middle"))
    body.append(_text(LEFT, 14, y_says, "start"))
    ends = _apart([y_of(curve[-1][1]) for curve in curves.values()])
    for (name, curve), colour, end in zip(curves.items(), COLOURS, ends, strict=False):
        path = [(x_of(x), y_of(y)) for x, y in curve]
        body.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" '
            f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in path)}"/>'
        )
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in path]
        body.append(_text(path[-1][0] + 8, end + 4, name, "start", colour))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    return "\n".join([head + 'font-family="system-ui, sans-serif" font-size="12">', *body, "</svg>\n"])


def _marks(values: Sequence[float], steps: Sequence[int]) -> list[float]:
    """Round values from below the least to above the greatest, two at least."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    every = [step * 10.0**power for power in range(low, high + 2) for step in steps]
    begin = max(at for at, mark in enumerate(every) if mark <= min(values) * 1.0001)
    end = min(at for at, mark in enumerate(every) if mark >= max(values) * 0.9999)
    return every[begin : max(end, begin + 1) + 1]


def _share(value: float, marks: Sequence[float]) -> float:
    return math.log(value / marks[0]) / math.log(marks[-1] / marks[0])


def _apart(heights: Sequence[float], least: float = 14.0) -> list[float]:
    """The same heights, moved down where names would lie on one another."""
    found = list(heights)
    before = -math.inf
    for at in sorted(range(len(found)), key=lambda at: found[at]):
        found[at] = before = max(found[at], before + least)
    return found


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{SOFT}" stroke-opacity="0.35"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = SOFT) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
