"""Tables for the operators' commands: what they show of an answer."""

from __future__ import annotations

from rich.console import Console

from penstock.api.admin_answers import PoolOverview, WorkerRow
from penstock.cli.tables import pool_screen
from penstock.fleet import Engines


def test_a_model_is_shown_with_its_engines_where_some_are_down() -> None:
    worker = WorkerRow(
        id="w1",
        lease_s=2.0,
        held=0,
        models=["mock", "one", "two"],
        engines={"one": Engines(1, 2), "two": Engines(3, 3)},
    )
    seen = PoolOverview(
        queue_depth=0,
        drain_rate_per_s=0.0,
        num_taken=0,
        num_held=0,
        num_dead=0,
        oldest_waiting_s=None,
        gateways=[],
        workers=[worker],
        running=[],
    )
    console = Console(width=200)
    with console.capture() as shown:
        console.print(pool_screen(seen))
    assert "mock, one (1 of 2 engines up), two\n" in shown.get().replace(" \n", "\n").replace("  \n", "\n")
