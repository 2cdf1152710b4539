"""A result as a table for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.loadgen.result import Result, quantiles

NAMES = {
    "ttft": "first token",
    "itl": "between tokens",
    "tpot": "mean of an answer's",
    "e2e": "whole answer",
    "lag": "sent late by",
}


def render_table(result: Result) -> RenderableType:
    """The figures of a run."""
    return Group(Text(load_text(result), style="bold"), _head(result), "", _latencies(result), *_errors(result))


def load_text(result: Result) -> str:
    plan = result.plan
    loop = f"{plan.rate:g} requests/s (Poisson)" if plan.rate else f"{plan.concurrency} at a time"
    form = "streams" if plan.is_stream else "whole answers"
    return f"{loop}, {form}, {result.window_s:.1f} s measured after {plan.warmup_s:g} s"


def figures(result: Result) -> list[tuple[str, str]]:
    """Name and value of each figure that is not a latency."""
    counts = result.counts
    rows = [
        ("requests", f"{counts['num_begun']:,}"),
        ("right", f"{counts['num_ok']:,}"),
        ("failed", f"{result.num_failed:,} (of these wrong: {counts['num_wrong']:,})"),
        ("requests/s", f"{result.rate('num_ended'):,.1f}"),
        ("tokens/s", f"{result.rate('num_tokens'):,.0f}"),
    ]
    if result.plan.slo:
        limits = ", ".join(f"{name} ≤ {value * 1000:g} ms" for name, value in result.plan.slo.items())
        share = counts["num_good"] / max(1, counts["num_begun"])
        rows.append(("goodput/s", f"{result.rate('num_good'):,.1f} ({share:.1%} within {limits})"))
    rows.append(("generator", f"{max(result.cpu, default=0.0):.0%} of a core"))
    return rows


def _head(result: Result) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in figures(result):
        table.add_row(name, value)
    return table


def _latencies(result: Result) -> Table:
    table = Table("ms", box=None, pad_edge=False)
    for name in ("p50", "p90", "p99", "max", "mean"):
        table.add_column(name, justify="right")
    for name, shown in NAMES.items():
        found = quantiles(result.latencies[name])
        if found is not None:
            table.add_row(shown, *(f"{found[column]:,.2f}" for column in ("p50", "p90", "p99", "max", "mean")))
    return table


def _errors(result: Result) -> list[RenderableType]:
    if not result.errors:
        return []
    table = Table("errors", "", box=None, pad_edge=False)
    for kind, num in result.errors.items():
        table.add_row(Text(kind, style="red"), f"{num:,}")
    return ["", table]
