"""Taking connections in: many a turn, as many as there are files for, and none lost when the server stops."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from penstock.http import listener
from penstock.http.http1 import Http1Connection
from penstock.http.listener import Acceptor, ConnectionLimit, accepts_per_turn
from penstock.http.server import HttpServer
from tests.support.waiting import wait_until_async

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Quiet(asyncio.Protocol):
    """Counts itself, and keeps its transport."""

    def __init__(self, made: list[asyncio.BaseTransport]) -> None:
        self.made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.append(transport)


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        yield listening


def _connect(bound: socket.socket, num: int) -> list[socket.socket]:
    """Connections that wait in the kernel."""
    return [socket.create_connection(bound.getsockname()) for _ in range(num)]


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_connections_that_come_at_once_are_taken_in_a_few_turns(
    bound: socket.socket, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """uvloop's own server takes one a turn."""
    num = 200
    clients = _connect(bound, num)

    async def turns() -> int:
        made: list[asyncio.BaseTransport] = []
        acceptor = Acceptor(bound, lambda: Quiet(made), lambda: 1000)
        count = 0
        while len(made) < num:
            await asyncio.sleep(0)
            count += 1
            assert count < 10 * num
        acceptor.close()
        await acceptor.wait_closed()
        for transport in made:
            transport.close()
        await asyncio.sleep(0.01)
        return count

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(turns()) < num / 4
    for client in clients:
        client.close()


async def test_connections_without_room_wait_in_the_kernel(
    bound: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "FULL_S", 0.005)
    clients = _connect(bound, 10)
    made: list[asyncio.BaseTransport] = []
    room = 4
    looks = 0

    def left() -> int:
        nonlocal looks
        looks += 1
        return room - len(made)

    acceptor = Acceptor(bound, lambda: Quiet(made), left)
    await wait_until_async(lambda: _is(len(made) == 4), "four are taken")
    before = looks
    for _ in range(1000):
        await asyncio.sleep(0)
    assert looks - before < 100, "it looks again and again"
    room = 10
    await wait_until_async(lambda: _is(len(made) == 10), "the rest follows")
    acceptor.close()
    for one in [*made, *clients]:
        one.close()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)


async def _is(value: bool) -> bool:
    return value


async def test_a_system_without_files_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "FAILED_S", 0.01)

    class Short(socket.socket):
        num_failures = 3

        def accept(self) -> tuple[socket.socket, Any]:
            if self.num_failures:
                self.num_failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    with Short() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        made: list[asyncio.BaseTransport] = []
        acceptor = Acceptor(bound, lambda: Quiet(made), lambda: 1000)
        clients = _connect(bound, 3)
        await wait_until_async(lambda: _is(len(made) == 3), "they are taken")
        acceptor.close()
        for one in [*made, *clients]:
            one.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
    assert bound.num_failures == 0
    assert [record.getMessage() for record in caplog.records] == [
        "connections wait, as they cannot be accepted: Too many open files"
    ]


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def test_a_server_that_stops_answers_new_connections_first(bound: socket.socket) -> None:
    limit = ConnectionLimit(1000)
    server = HttpServer(uvicorn.Config(_app, http=limit.apply(Http1Connection), log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await wait_until_async(lambda: _is(server.started), "it serves")
    server.accepts_per_turn = 4
    clients = _connect(bound, 40)
    for client in clients:
        client.sendall(REQUEST)
    server.should_exit = True  # while they wait in the kernel
    await serving
    answers = []
    for client in clients:
        client.settimeout(5.0)
        answers.append(client.recv(4096)[:12])
        client.close()
    assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}


def _limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    now = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: now.append(limits))
    return now


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "others", "raised_to", "serves"),
    [
        (1024, 1 << 20, 10_000, 0, 10_256, 10_000),
        (1024, resource.RLIM_INFINITY, 10_000, 256, 10_512, 10_000),
        (1024, 4096, 10_000, 0, 4096, 3840),
        (20_000, 20_000, 10_000, 0, 20_000, 10_000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10_000, 0, resource.RLIM_INFINITY, 10_000),
        (64, 64, 10_000, 256, 64, 32),
        (1024, 1024, 100, 256, 1024, 100),
    ],
)
def test_connections_stay_below_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    asked: int,
    others: int,
    raised_to: int,
    serves: int,
) -> None:
    now = _limits(monkeypatch, soft, hard)
    limit = ConnectionLimit(asked, others)
    assert now[-1][0] == raised_to
    assert limit.serves == serves
    assert 1 <= limit.lingers <= 64
    assert bool(caplog.records) == (serves < asked)


def test_processes_that_share_a_listener_take_fewer_each() -> None:
    assert [accepts_per_turn(num) for num in (1, 2, 4, 8, 64)] == [32, 16, 8, 4, 4]
