"""`penstock doctor`, `ps`, `dead` and `cancel`: an operator's commands. They talk HTTP, so they work embedded too."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}

Url = Annotated[str, typer.Option("--url", envvar="PENSTOCK_URL", help="A running gateway.")]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="PENSTOCK_API_KEY", help="An administrator's key.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
RequestId = Annotated[str, typer.Argument(help="The request's id.")]

dead = typer.Typer(name="dead", help="Requests that ended several workers.", no_args_is_help=True)


def _call(method: str, url: str, path: str, api_key: str) -> dict[str, Any]:
    """One request to the gateway; what goes wrong is one sentence on stderr, and exit status 2."""
    headers = {"x-api-key": api_key} if api_key else {}
    try:
        answer = httpx2.request(method, f"{url.rstrip('/')}/v1/admin{path}", headers=headers, timeout=TIMEOUT_S)
    except (httpx2.TransportError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        typer.echo(f"penstock: no answer from {url} ({error or type(error).__name__}); is a gateway there?", err=True)
        raise typer.Exit(2) from None
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        body = {}
    if answer.status_code >= 400:
        said = body.get("error", {}).get("message", f"status {answer.status_code}")
        typer.echo(f"penstock: {said}", err=True)
        raise typer.Exit(2)
    return body


def doctor(url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """Look at the store, the gateway and the workers. Exit status 1 when something is an error."""
    report = _call("GET", url, "/doctor", api_key)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        table = Table("", "what", "found", "advice", box=None, pad_edge=False)
        table.columns[3].overflow = "fold"
        for one in report["findings"]:
            mark = Text(one["level"], style=COLOURS.get(one["level"], ""))
            table.add_row(mark, one["name"], one["value"], one["advice"])
        Console(highlight=False).print(table)
    if report["level"] == "error":
        raise typer.Exit(1)


def ps(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
    once: Annotated[bool, typer.Option("--once", help="Print once and leave.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=0.2, help="Seconds between two looks.")] = 1.0,
) -> None:
    """A live table of gateways, workers, the queue and running requests."""
    if as_json:
        typer.echo(json.dumps(_call("GET", url, "/overview", api_key), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if once or not console.is_terminal:
        console.print(_screen(_call("GET", url, "/overview", api_key)))
        return
    try:
        with Live(_screen(_call("GET", url, "/overview", api_key)), console=console, screen=True) as live:
            while True:
                time.sleep(interval_s)
                live.update(_screen(_call("GET", url, "/overview", api_key)))
    except KeyboardInterrupt:
        return


def cancel(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Cancel a request, anybody's, waiting or running."""
    said = _call("DELETE", url, f"/requests/{request_id}", api_key)
    typer.echo(f"{request_id}: {said['outcome']}")


@dead.command("list")
def list_dead(url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """The list, newest first."""
    jobs = _call("GET", url, "/dead", api_key)["data"]
    if as_json:
        typer.echo(json.dumps(jobs, indent=2))
        return
    table = Table("id", "model", "deaths", "error", box=None, pad_edge=False)
    for job in jobs:
        table.add_row(job["id"], job["model"], str(job["deaths"]), job["error"])
    Console(highlight=False).print(table if jobs else "none")


@dead.command("show")
def show_dead(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """What is known of one; never its prompt."""
    typer.echo(json.dumps(_call("GET", url, f"/dead/{request_id}", api_key), indent=2))


@dead.command("redrive")
def redrive(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Run it once more, under a new id."""
    typer.echo(_call("POST", url, f"/dead/{request_id}/redrive", api_key)["request_id"])


@dead.command("drop")
def drop(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Take it off the list."""
    _call("DELETE", url, f"/dead/{request_id}", api_key)
    typer.echo(f"dropped {request_id}")


def _screen(seen: dict[str, Any]) -> Group:
    oldest = seen["oldest_waiting_s"]
    head = Text(
        f"waiting {seen['queue_depth']}"
        + (f" (the next one for {oldest:g} s)" if oldest is not None else "")
        + f"   drains {seen['drain_rate_per_s']:g}/s   taken {seen['num_taken']}   dead {seen['num_dead']}   "
        + f"{time.strftime('%H:%M:%S')}"
    )
    gateways = Table("gateway", "lease, s", box=None, pad_edge=False)
    for one in seen["gateways"]:
        gateways.add_row(one["id"], f"{one['lease_s']:g}", style="" if one["lease_s"] > 0 else "red")
    workers = Table("worker", "lease, s", "held", "free", "slots", "where", "models", box=None, pad_edge=False)
    for one in seen["workers"]:
        counts = [str(one[name]) if one[name] is not None else "?" for name in ("held", "free", "slots")]
        where = f"{one['host']}/{one['pid']}"
        style = "" if one["lease_s"] > 0 else "red"
        workers.add_row(one["id"], f"{one['lease_s']:g}", *counts, where, ", ".join(one["models"]), style=style)
    running = Table("request", "model", "state", "worker", "attempts", "tokens", "age, s", box=None, pad_edge=False)
    for one in seen["running"]:
        running.add_row(
            *(one["id"], one["model"], one["state"], one["worker"], str(one["attempts"]), str(one["tokens"])),
            f"{one['age_s']:g}",
        )
    return Group(head, "", gateways, "", workers, "", running)
