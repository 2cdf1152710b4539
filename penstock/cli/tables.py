"""The answers of the admin routes as tables, for the operators' commands. Pure; knows no server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from penstock.api.admin_answers import GatewayRow, PoolOverview, RunningRow, WorkerRow
from penstock.fleet import Engines
from penstock.transports.base import DeadJob, Finding

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """A doctor's findings, in their order."""
    table = _table("", "what", "found", "advice")
    table.columns[2].overflow = table.columns[3].overflow = "fold"
    for one in findings:
        table.add_row(Text(one.level, style=COLOURS[one.level]), Text(one.name), Text(one.value), Text(one.advice))
    return table


def dead_table(jobs: Sequence[DeadJob]) -> Table:
    table = _table("id", "model", "deaths", "error", "reason")
    for job in jobs:
        table.add_row(Text(job.id), Text(job.model), str(job.deaths), Text(job.error), Text(job.reason))
    return table


def pool_screen(seen: PoolOverview, problem: str = "") -> Group:
    """One look at a pool; `problem`: why it is not a fresh one."""
    oldest = seen.oldest_waiting_s
    waits = "" if oldest is None else f" (the next one for {oldest:g} s)"
    head = Text(
        f"waiting {seen.queue_depth}{waits}   drains {seen.drain_rate_per_s:g}/s   taken {seen.num_taken}   "
        f"dead {seen.num_dead}   {time.strftime('%H:%M:%S')}"
    )
    parts: list[Any] = [head, Text(problem, style="red"), _gateways(seen.gateways), "", _workers(seen.workers)]
    hidden = seen.num_held - len(seen.running)
    more = [Text(f"and {hidden} more")] if hidden > 0 else []
    return Group(*parts, "", _running(seen.running), *more)


def _gateways(gateways: Sequence[GatewayRow]) -> Table:
    table = _table("gateway", "lease, s")
    for row in gateways:
        table.add_row(row.id, f"{row.lease_s:g}", style=_style(row))
    return table


def _workers(workers: Sequence[WorkerRow]) -> Table:
    table = _table("worker", "lease, s", "held", "free", "slots", "where", "models")
    for row in workers:
        free, slots = ("?" if count is None else str(count) for count in (row.free, row.slots))
        where = Text("?" if row.host is None else f"{row.host}/{row.pid}")
        models = Text(", ".join(_model(name, row.engines.get(name)) for name in row.models))
        table.add_row(row.id, f"{row.lease_s:g}", str(row.held), free, slots, where, models, style=_style(row))
    return table


def _model(name: str, engines: Engines | None) -> str:
    """With its engines where some are down."""
    if engines is None or engines.num_up == engines.num:
        return name
    return f"{name} ({engines.num_up} of {engines.num} engines up)"


def _running(running: Sequence[RunningRow]) -> Table:
    table = _table("request", "model", "state", "worker", "attempts", "tokens", "age, s")
    for row in running:
        counts = str(row.attempts), str(row.tokens), f"{row.age_s:g}"
        table.add_row(row.id, Text(row.model), row.state, row.worker, *counts)
    return table


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    return table


def _style(row: GatewayRow | WorkerRow) -> str:
    return "" if row.lease_s > 0 else "red"
