"""`penstock doctor`, `ps`, `dead` and `cancel`: an operator's commands. They talk HTTP, so they work embedded too.

Exit status 1: there was no answer, or a refusal, or `doctor` found an error.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from penstock.api.admin_answers import DeadList, DoctorReport, PoolOverview
from penstock.cli.admin_client import RETRIES, AdminClient
from penstock.cli.flags import exit_with, exposed, print_error
from penstock.cli.help import PlainCommand, new_group
from penstock.cli.options import DEFAULT_URL, ApiKey, AsJson, Url
from penstock.cli.tables import dead_table, findings_table, pool_screen
from penstock.cli.terminal import console, echo
from penstock.errors import StoreUnavailable, Unavailable
from penstock.settings import load_settings
from penstock.transports.base import worst_first

T = TypeVar("T")

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.")]

dead = new_group("dead", "The dead-letter list: requests that ended several workers, or cannot be read.")


def call_gateway(method: str, url: str, path: str, api_key: str | None, kind: type[T], *, retries: int = RETRIES) -> T:
    """One call of an operators' route; its JSON object as a `kind`. See `AdminClient`."""
    with AdminClient(url, api_key, retries=retries) as client:
        return client.call(method, path, kind)


@exit_with
def doctor(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Look at this Redis server directly, without a gateway. Every user of this machine can read a "
            "password in it.",
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="With --redis-url: the pool to look at.")] = None,
    as_json: AsJson = False,
) -> int:
    """Look at the store, the gateway and the workers. Exit status 1 when something is an error."""
    if redis_url is None:
        report = call_gateway("GET", url, "/doctor", api_key, DoctorReport)
    else:
        report = asyncio.run(_examine(redis_url, pool))
    if as_json:
        _print_json(msgspec.to_builtins(report))
    else:
        console().print(findings_table(report.findings))
    return 1 if report.level == "error" else 0


async def _examine(redis_url: str, pool: str | None) -> DoctorReport:
    from penstock.metrics import Metrics  # only here: the other commands begin a quarter of a second sooner
    from penstock.transports import make_transport

    settings = load_settings({"redis_url": redis_url, "pool": pool})
    for note in exposed(settings):
        print_error(note)
    transport = make_transport(settings, Metrics())
    try:
        try:
            await transport.open()
        except StoreUnavailable:
            pass  # `inspect` reports it
        findings = worst_first(await transport.inspect())
    finally:
        await transport.close()
    return DoctorReport(level=findings[0].level, findings=findings)


@exit_with
def ps(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    once: Annotated[bool, typer.Option("--once", help="Print once and leave.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.2, metavar="SECONDS", help="Time between two looks.")
    ] = 1.0,
) -> int:
    """A live table of gateways, workers, the queue and running requests."""
    screen = console()
    with AdminClient(url, api_key) as client:

        def look() -> PoolOverview:
            return client.call("GET", "/overview", PoolOverview)

        seen = look()
        if as_json:
            _print_json(msgspec.to_builtins(seen))
        elif once or not screen.is_terminal:
            screen.print(pool_screen(seen))
        else:
            _follow(screen, seen, look, interval_s)
    return 0


def _follow(screen: Console, seen: PoolOverview, look: Callable[[], PoolOverview], interval_s: float) -> None:
    """Until Ctrl-C. A gateway that is started again meanwhile is waited for."""
    try:
        with Live(pool_screen(seen), console=screen, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                problem = ""
                try:
                    seen = look()
                except Unavailable as error:
                    problem = error.message
                live.update(pool_screen(seen, problem), refresh=True)
    except KeyboardInterrupt:
        return


@exit_with
def cancel(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Cancel a request of any caller, waiting or running."""
    outcome = call_gateway("DELETE", url, f"/requests/{_quoted(request_id)}", api_key, dict[str, Any])
    echo(f"{request_id}: {outcome['outcome']}")
    return 0


@dead.command("list", cls=PlainCommand)
@exit_with
def list_dead(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> int:
    """The list, newest first."""
    jobs = call_gateway("GET", url, "/dead", api_key, DeadList).data
    if as_json:
        _print_json(msgspec.to_builtins(jobs))
    else:
        console().print(dead_table(jobs) if jobs else "none")
    return 0


@dead.command("show", cls=PlainCommand)
@exit_with
def show_dead(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Print one dead-letter entry, without its prompt."""
    _print_json(call_gateway("GET", url, f"/dead/{_quoted(request_id)}", api_key, dict[str, Any]))
    return 0


@dead.command("redrive", cls=PlainCommand)
@exit_with
def redrive(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Run it once more, under a new id, which is printed."""
    path = f"/dead/{_quoted(request_id)}/redrive"
    echo(call_gateway("POST", url, path, api_key, dict[str, Any], retries=0)["request_id"])
    return 0


@dead.command("drop", cls=PlainCommand)
@exit_with
def drop(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Take it off the list."""
    call_gateway("DELETE", url, f"/dead/{_quoted(request_id)}", api_key, dict[str, Any])
    echo(f"dropped {request_id}")
    return 0


def _quoted(request_id: str) -> str:
    return quote(request_id, safe="")


def _print_json(content: object) -> None:
    echo(json.dumps(content, indent=2, ensure_ascii=False))
