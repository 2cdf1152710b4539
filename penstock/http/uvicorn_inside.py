"""The undocumented names of uvicorn that Penstock uses: for each why, and how much it saves.

uvicorn may change these names in any release. So its version is bounded (`WORKS_WITH`, as in `pyproject.toml`), and the
import of this module compares each name with what is expected of it: another uvicorn is one error at the start, and not
a leak or a hang later. All other modules take these classes from here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping
from types import FunctionType
from typing import Any, NamedTuple

import uvicorn
from uvicorn import Config, Server
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from penstock.errors import ConfigError

__all__ = ["FlowControl", "HttpToolsProtocol", "LightEvent", "LightQueue", "ServerState"]

WORKS_WITH = ">=0.54.0,<0.55"
OWNERS: dict[str, type] = {
    one.__name__: one for one in (HttpToolsProtocol, RequestResponseCycle, FlowControl, ServerState, Server, Config)
}


class Use(NamedTuple):
    """`methods` with their parameters, and `attributes`, of the class `owner`. `saves`: what it would cost without."""

    owner: str
    methods: tuple[str, ...]
    attributes: tuple[str, ...]
    why: str
    saves: str


USES = (
    Use(
        "HttpToolsProtocol",
        (
            "__init__ config server_state app_state _loop",
            "connection_made transport",
            "connection_lost exc",
            "data_received data",
            "eof_received",
            "pause_writing",
            "resume_writing",
            "shutdown",
            "on_message_begin",
            "on_url url",
            "on_header name value",
            "on_headers_complete",
            "on_body body",
            "on_message_complete",
            "on_response_complete",
            "send_400_response msg",
            "_start_asgi_task cycle app",
            "_unset_keepalive_if_required",
        ),
        ("loop", "transport", "flow", "connections", "server_state", "parser", "scope", "headers", "url", "cycle"),
        "http1.py overrides what is between socket and request: deadlines, sizes, `Upgrade`, half-closed clients",
        "an HTTP/1.1 server of our own, some 800 lines",
    ),
    Use(
        "HttpToolsProtocol",
        (),
        ("pipeline",),
        "is made a `LightQueue`: requests that wait for the one before them are rare",
        "700 bytes a connection",
    ),
    Use(
        "FlowControl",
        ("pause_reading", "resume_reading"),
        (),
        "http1.py holds back what a client sends while another request of it is answered",
        "memory without a bound",
    ),
    Use(
        "FlowControl",
        (),
        ("_is_writable_event",),
        "is made a `LightEvent`: a task waits for it only when its client reads slowly",
        "800 bytes a connection",
    ),
    Use(
        "RequestResponseCycle",
        (),
        ("message_event",),
        "is made a `LightEvent`: most bodies have arrived before a task would wait for them",
        "800 bytes an open request",
    ),
    Use(
        "RequestResponseCycle",
        (),
        ("transport",),
        "connection.py sets its own in its place until the answer begins, so that the head leaves with the first bytes",
        "a system call an answer",
    ),
    Use(
        "RequestResponseCycle",
        (),
        ("chunked_encoding", "flow", "disconnected"),
        "with `FlowControl.write_paused`: connection.py writes a token as one chunk, without an ASGI message",
        "a coroutine a token, which costs as much as the write",
    ),
    Use("FlowControl", (), ("write_paused",), "the same", "the same"),
    Use(
        "RequestResponseCycle",
        (),
        ("scope", "more_body", "response_started", "response_complete"),
        "http1.py must know what is answered, to refuse, to probe a half-closed client and to call a connection idle",
        "answers that arrive after a refusal",
    ),
    Use(
        "ServerState",
        ("__init__",),
        ("connections", "default_headers"),
        "listener.py counts connections and closes the longest idle; a refusal has the server's headers",
        "a second list of connections",
    ),
    Use(
        "Server",
        ("startup sockets", "shutdown sockets", "handle_exit sig frame", "capture_signals"),
        ("server_state", "servers", "lifespan", "started"),
        "server.py accepts many connections a turn of the loop, and its owner handles the signals",
        "256 turns of the loop for the last of 256 clients that connect at once",
    ),
    Use(
        "Server",
        ("main_loop", "on_tick counter"),
        ("should_exit",),
        "server.py ticks once a second, for the date in answers' heads, instead of ten times, and ends without a tick",
        "0.06 to 0.15 % of a core for an idle process, and 0.1 s at a stop",
    ),
    Use("Config", (), ("http_protocol_class",), "server.py makes the connections itself", "as for `Server.startup`"),
)


def check(owners: Mapping[str, type] = OWNERS, version: str = uvicorn.__version__) -> None:
    """Raises `ConfigError` that lists each name of `USES` that this uvicorn lacks or has in another shape."""
    wrong = [fault for use in USES for fault in _faults(owners[use.owner], use)]
    try:
        wrong += _faults_of_values(owners)
    except (AttributeError, TypeError) as error:
        wrong.append(str(error))
    if wrong:
        raise ConfigError(
            f"uvicorn {version} is not one that Penstock works with: {'; '.join(wrong)}. "
            f"Install uvicorn[standard]{WORKS_WITH}"
        )


def _faults(owner: type, use: Use) -> list[str]:
    functions = [one for one in vars(owner).values() if isinstance(one, FunctionType)]
    known = {*vars(owner), *(name for one in functions for name in one.__code__.co_names)}
    faults = [f"{use.owner}.{name} is missing" for name in use.attributes if name not in known]
    for method in use.methods:
        name, *parameters = method.split()
        found = vars(owner).get(name)
        if found is None:
            faults.append(f"{use.owner}.{name} is missing")
        elif list(inspect.signature(found).parameters) != ["self", *parameters]:
            faults.append(f"{use.owner}.{name} takes {inspect.signature(found)}")
    return faults


def _faults_of_values(owners: Mapping[str, type]) -> list[str]:
    """Attributes that are read for each token must begin with the values that mean "nothing has happened"."""
    transport, event, logger, scope = object(), asyncio.Event(), logging.getLogger(__name__), dict[str, Any]()
    flow = owners["FlowControl"](transport)
    cycle = owners["RequestResponseCycle"](
        scope=scope,
        transport=transport,
        flow=flow,
        logger=logger,
        access_logger=logger,
        access_log=False,
        default_headers=[],
        message_event=event,
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )
    state = owners["ServerState"]()
    expected: tuple[tuple[object, object, str], ...] = (
        (flow.write_paused, False, "FlowControl.write_paused"),
        (isinstance(flow._is_writable_event, asyncio.Event), True, "FlowControl._is_writable_event"),
        (cycle.chunked_encoding, None, "RequestResponseCycle.chunked_encoding"),
        (cycle.disconnected, False, "RequestResponseCycle.disconnected"),
        (cycle.more_body, True, "RequestResponseCycle.more_body"),
        (cycle.response_started, False, "RequestResponseCycle.response_started"),
        (cycle.response_complete, False, "RequestResponseCycle.response_complete"),
        (cycle.message_event, event, "RequestResponseCycle.message_event"),
        (cycle.transport, transport, "RequestResponseCycle.transport"),
        (cycle.flow, flow, "RequestResponseCycle.flow"),
        (cycle.scope, scope, "RequestResponseCycle.scope"),
        (state.connections, set(), "ServerState.connections"),
        (state.default_headers, [], "ServerState.default_headers"),
    )
    return [f"{name} is {value!r} at first" for value, at_first, name in expected if value != at_first]


check()


class LightEvent:
    """The part of an `asyncio.Event` that uvicorn uses: 57 bytes instead of 857 until a task waits, which is rare."""

    __slots__ = ("_event", "_is_set")

    def __init__(self, *, is_set: bool) -> None:
        self._is_set = is_set
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        self._is_set = False
        if self._event is not None:
            self._event.clear()

    async def wait(self) -> None:
        if not self._is_set:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()


class LightQueue(list[Any]):
    """The part of a deque that uvicorn uses: 65 bytes instead of 769 while it is empty, which it nearly always is."""

    __slots__ = ()

    def appendleft(self, waiting: Any) -> None:
        self.insert(0, waiting)
