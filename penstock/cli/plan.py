"""`penstock plan`: a load to a table of what it takes. The arithmetic is `penstock.planner.capacity`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from penstock.cli.flags import exit_with
from penstock.cli.options import AsJson
from penstock.cli.terminal import console, echo
from penstock.planner.capacity import Capacity, Demand, Figure
from penstock.planner.capacity import plan as make_plan
from penstock.planner.costs import PACKAGED, Costs, read_costs
from penstock.settings import Settings

DELIVERED_S = 10.0  # how long the tokens of an interactive request are kept once its client has them all

_LOAD, _LIMITS = "Load, at its peak", "Limits"

_LIMIT = {
    name: int(Settings.model_fields[name].default) for name in ("max_batches", "max_batch_size", "max_connections")
}
SLOTS = _LIMIT["max_batches"] * _LIMIT["max_batch_size"]
MAX_CONNECTIONS = _LIMIT["max_connections"]

TokensPerS = Annotated[float, typer.Option(metavar="N", help="Tokens a second, of all streams.", rich_help_panel=_LOAD)]
Streams = Annotated[int, typer.Option(metavar="N", help="Streams open at once.", rich_help_panel=_LOAD)]
TokensPerAnswer = Annotated[
    float, typer.Option(metavar="N", help="Mean length of an answer. Gives requests a second.", rich_help_panel=_LOAD)
]
Retention = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="How long an ended request is kept: 10 once an interactive client has all of it, "
        "PENSTOCK_BACKGROUND_RETENTION_S for background ones. Gives the memory of Redis.",
        rich_help_panel=_LOAD,
    ),
]
Headroom = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Share of one core that a process may use; the rest is for bursts and noise.",
        rich_help_panel=_LIMITS,
    ),
]
Slots = Annotated[
    int,
    typer.Option(
        metavar="N", help="Sequences that one worker runs at once: batches × their size.", rich_help_panel=_LIMITS
    ),
]
MaxConnections = Annotated[
    int,
    typer.Option(
        metavar="N", help="Connections of one gateway process: PENSTOCK_MAX_CONNECTIONS.", rich_help_panel=_LIMITS
    ),
]
Cores = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Cores of one machine, to compute the number of machines. 0: leave it out.",
        rich_help_panel=_LIMITS,
    ),
]
CostsFile = Annotated[
    Path | None,
    typer.Option(
        help="Measured costs, as `python -m bench.scale --costs FILE` writes them on your machine. "
        "Default: those that come with Penstock.",
        metavar="FILE",
    ),
]


@exit_with
def plan(
    tokens_per_s: TokensPerS,
    streams: Streams,
    tokens_per_answer: TokensPerAnswer = 256.0,
    retention_s: Retention = DELIVERED_S,
    headroom: Headroom = 0.6,
    slots: Slots = SLOTS,
    max_connections: MaxConnections = MAX_CONNECTIONS,
    cores: Cores = 0,
    costs: CostsFile = None,
    as_json: AsJson = False,
) -> int:
    """Compute what a load needs: gateways, workers, Redis, memory, network.

    Each figure is the load times a cost measured with `python -m bench.scale`; the last column names the cost. Engines
    are not included.
    """
    demand = Demand(
        tokens_per_s=tokens_per_s,
        streams=streams,
        tokens_per_answer=tokens_per_answer,
        retention_s=retention_s,
        headroom=headroom,
        cores=cores,
        slots=slots,
        max_connections=max_connections,
    )
    measured = read_costs(costs or PACKAGED)
    found = make_plan(demand, measured)
    if as_json:
        echo(json.dumps(_json(found, measured), indent=2, ensure_ascii=False))
    else:
        console().print(_screen(found, measured))
    return 0


def _json(found: Capacity, costs: Costs) -> dict[str, object]:
    return {
        "demand": {**asdict(found.demand), "requests_per_s": round(found.demand.requests_per_s, 3)},
        "figures": {
            figure.name: {"value": _rounded(figure.value), "unit": figure.unit, "why": figure.why}
            for figure in found.figures
        },
        "advice": found.advice,
        "costs": msgspec.to_builtins(costs),
    }


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, 3)


def _screen(found: Capacity, costs: Costs) -> Group:
    demand = found.demand
    each = demand.tokens_per_s / demand.streams if demand.streams else 0.0
    head = (
        f"{demand.tokens_per_s:,.0f} tokens/s over {demand.streams:,} streams: {each:,.1f} tokens/s a stream, "
        f"{demand.requests_per_s:,.1f} requests/s of {demand.tokens_per_answer:g} tokens"
    )
    table = Table("", "needed", "because", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    table.columns[1].justify = "right"
    table.columns[1].no_wrap = True
    table.columns[2].overflow = "fold"
    for figure in found.figures:
        is_known = figure.value is not None
        table.add_row(figure.label, _shown(figure), Text(figure.why), style="" if is_known else "yellow")
    at = costs.about
    streams = ", ".join(f"{num:,}" for num in at.streams)
    origin = (
        f"Costs: measured on {at.date} with `{at.command}`, on {at.cores} cores of {at.cpu} that load and servers "
        f"shared, Penstock {at.penstock}, {at.server}; a token's with {streams} streams open. Another machine has "
        "others: measure there, and give --costs."
    )
    return Group(Text(head, style="bold"), "", table, "", *map(Text, found.advice), "", Text(origin, style="dim"))


def _shown(figure: Figure) -> str:
    value = figure.value
    if value is None:
        return "?"
    if figure.unit == "cores":
        return f"{value:,.2f} cores"
    text = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
    return f"{text} {figure.unit}".strip()
