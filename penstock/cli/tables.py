"""What an operator's commands print: the answers of the admin routes as tables. Pure; knows no server."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def findings_table(findings: list[dict[str, Any]]) -> Table:
    """A doctor's findings, in their order."""
    table = _table("", "what", "found", "advice")
    table.columns[2].overflow = table.columns[3].overflow = "fold"
    for one in findings:
        mark = Text(one["level"], style=COLOURS.get(one["level"], ""))
        table.add_row(mark, Text(one["name"]), Text(one["value"]), Text(one["advice"]))
    return table


def dead_table(jobs: list[dict[str, Any]]) -> Table:
    table = _table("id", "model", "deaths", "error", "reason")
    for job in jobs:
        causes = (Text(job[name]) for name in ("error", "reason"))
        table.add_row(Text(job["id"]), Text(job["model"]), str(job["deaths"]), *causes)
    return table


def site_screen(seen: dict[str, Any], trouble: str = "") -> Group:
    """One look at a site; `trouble`: why it is not a fresh one."""
    oldest = seen["oldest_waiting_s"]
    waits = "" if oldest is None else f" (the next one for {oldest:g} s)"
    head = Text(
        f"waiting {seen['queue_depth']}{waits}   drains {seen['drain_rate_per_s']:g}/s   taken {seen['num_taken']}   "
        f"dead {seen['num_dead']}   {time.strftime('%H:%M:%S')}"
    )
    parts: list[Any] = [head, Text(trouble, style="red"), _gateways(seen["gateways"]), "", _workers(seen["workers"])]
    hidden = seen["num_held"] - len(seen["running"])
    more = [Text(f"and {hidden} more")] if hidden > 0 else []
    return Group(*parts, "", _running(seen["running"]), *more)


def _gateways(gateways: list[dict[str, Any]]) -> Table:
    table = _table("gateway", "lease, s")
    for one in gateways:
        table.add_row(one["id"], f"{one['lease_s']:g}", style=_style(one))
    return table


def _workers(workers: list[dict[str, Any]]) -> Table:
    table = _table("worker", "lease, s", "held", "free", "slots", "where", "models")
    for one in workers:
        counts = ["?" if one[name] is None else str(one[name]) for name in ("held", "free", "slots")]
        where = "?" if one["host"] is None else f"{one['host']}/{one['pid']}"
        models = Text(", ".join(one["models"]))
        table.add_row(one["id"], f"{one['lease_s']:g}", *counts, Text(where), models, style=_style(one))
    return table


def _running(running: list[dict[str, Any]]) -> Table:
    table = _table("request", "model", "state", "worker", "attempts", "tokens", "age, s")
    for one in running:
        counts = str(one["attempts"]), str(one["tokens"]), f"{one['age_s']:g}"
        table.add_row(one["id"], Text(one["model"]), one["state"], one["worker"], *counts)
    return table


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    return table


def _style(leased: dict[str, Any]) -> str:
    return "" if leased["lease_s"] > 0 else "red"
