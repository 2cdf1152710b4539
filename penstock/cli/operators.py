"""`penstock doctor`, `ps`, `dead` and `cancel`: an operator's commands. They talk HTTP, so they work embedded too.

Exit status: 0; 1 when `doctor` found an error; 2 when there was no answer, or an error.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
import typer
from rich.console import Console
from rich.live import Live

from penstock.api.admin_answers import DeadList, DoctorReport, PoolOverview
from penstock.cli.flags import exit_with, exposed, print_error
from penstock.cli.help import Command, new_group
from penstock.cli.options import DEFAULT_URL, ApiKey, AsJson, Url
from penstock.cli.tables import dead_table, findings_table, pool_screen
from penstock.cli.terminal import console, echo
from penstock.errors import ConfigError, PenstockError, StoreUnavailable, Unauthorized, Unavailable, from_code
from penstock.settings import load_settings
from penstock.transports.base import worst_first

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 15.0
INTERRUPTED = 130

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.")]

dead = new_group("dead", "Requests that were set aside: they ended several workers, or cannot be read.")


def answers(run: Callable[P, int]) -> Callable[P, None]:
    """The command `run`; a refusal of the server is one sentence on stderr and exit status 2."""

    @functools.wraps(run)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return run(*args, **kwargs)
        except ConfigError:
            raise
        except PenstockError as error:
            print_error(error.message)
            return 2

    return exit_with(command)


def call_gateway(method: str, url: str, path: str, api_key: str | None, kind: type[T]) -> T:
    """One request to the admin routes of the first of the gateways that answers; `Unavailable` if none does.

    Returns its JSON object as a `kind`.
    """
    *others, last = url.split(",")
    for gateway in others:
        try:
            return _call_one(method, gateway, path, api_key, kind)
        except Unavailable:
            continue  # the last one's error is raised
    return _call_one(method, last, path, api_key, kind)


def _call_one(method: str, url: str, path: str, api_key: str | None, kind: type[T]) -> T:
    where = url.strip().rstrip("/")
    try:
        headers = {"content-type": "application/json"}  # without it, or a key, a gateway takes no POST
        if api_key:
            headers["x-api-key"] = api_key.encode("ascii").decode()
        answer = httpx2.request(method, f"{where}/v1/admin{path}", headers=headers, timeout=TIMEOUT_S)
    except UnicodeEncodeError:
        raise ConfigError("the API key holds characters that no key has") from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise ConfigError(f"{url!r} is not an http:// or https:// URL: {error}") from error
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"no answer from {where} ({reason}); is a gateway there? (--url, PENSTOCK_URL)") from error
    try:
        if answer.status_code < 400:
            return msgspec.json.decode(answer.content, type=kind)
        body = msgspec.json.decode(answer.content, type=dict[str, Any])
        refusal = from_code(body["error"]["code"], body["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        raise Unavailable(f"{where} answered {answer.status_code}, but not as a gateway does") from None
    if isinstance(refusal, Unauthorized):
        refusal.message += " (--api-key, PENSTOCK_API_KEY)"
    raise refusal


@answers
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


@answers
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

    def look() -> PoolOverview:
        return call_gateway("GET", url, "/overview", api_key, PoolOverview)

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


@answers
def cancel(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Cancel a request of any caller, waiting or running."""
    outcome = call_gateway("DELETE", url, f"/requests/{_quoted(request_id)}", api_key, dict[str, Any])
    echo(f"{request_id}: {outcome['outcome']}")
    return 0


@dead.command("list", cls=Command)
@answers
def list_dead(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> int:
    """The list, newest first."""
    jobs = call_gateway("GET", url, "/dead", api_key, DeadList).data
    if as_json:
        _print_json(msgspec.to_builtins(jobs))
    else:
        console().print(dead_table(jobs) if jobs else "none")
    return 0


@dead.command("show", cls=Command)
@answers
def show_dead(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """What is known of one; never its prompt."""
    _print_json(call_gateway("GET", url, f"/dead/{_quoted(request_id)}", api_key, dict[str, Any]))
    return 0


@dead.command("redrive", cls=Command)
@answers
def redrive(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Run it once more, under a new id, which is printed."""
    echo(call_gateway("POST", url, f"/dead/{_quoted(request_id)}/redrive", api_key, dict[str, Any])["request_id"])
    return 0


@dead.command("drop", cls=Command)
@answers
def drop(request_id: RequestId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Take it off the list."""
    call_gateway("DELETE", url, f"/dead/{_quoted(request_id)}", api_key, dict[str, Any])
    echo(f"dropped {request_id}")
    return 0


def _quoted(request_id: str) -> str:
    return quote(request_id, safe="")


def _print_json(content: object) -> None:
    echo(json.dumps(content, indent=2, ensure_ascii=False))
