"""No body of the allowed size holds the event loop, and with it another client's tokens, whatever stands in it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from penstock.api.anthropic.body import MessagesBody
from penstock.api.native import GenerateBody
from penstock.api.openai.chat import ChatBody
from penstock.api.openai.completions import CompletionBody
from penstock.api.openai.embeddings import EmbeddingBody
from penstock.api.responses.body import ResponseBody
from penstock.errors import InvalidRequest, Overloaded
from penstock.http.large_bodies import (
    LARGE_BYTES,
    LARGE_VALUES,
    MAX_HELD_BYTES,
    MAX_HELD_BYTES_OF_ONE,
    MAX_WAITING,
    MAX_WAITING_OF_ONE,
    SMALL_BYTES,
    LargeBodies,
    is_large,
)
from penstock.processes.announce import GC_THRESHOLD
from tests.support.bodies import GENERATE, SHAPES, bodies
from tests.support.serving import ask, post, serving
from tests.support.upstream import Upstream

MAX_HELD_S = 0.1

pytestmark = pytest.mark.timeout(240)


class Pulse:
    """How long the event loop stood still: the CPU time of the whole process between two turns of it.

    Not wall time, which other programs take as well; and not the thread's own, as another thread that holds the
    interpreter holds the loop just the same.
    """

    def __init__(self) -> None:
        self.held_s = 0.0
        self._is_over = False

    async def __aenter__(self) -> Pulse:
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_over = True
        await self._beating

    async def _beat(self) -> None:
        at = time.process_time()
        while not self._is_over:
            await asyncio.sleep(0)
            now = time.process_time()
            self.held_s = max(self.held_s, now - at)
            at = now


@pytest.fixture
def quiet_collector() -> Iterator[None]:
    """As in a gateway: what the tests have made so far is not walked again and again."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.long
@pytest.mark.usefixtures("quiet_collector")
@pytest.mark.parametrize("api", SHAPES)
async def test_no_body_holds_the_event_loop(api: str) -> None:
    held: dict[str, float] = {}
    statuses = set()
    async with serving(models=["mock=mock"]) as port:
        for path, name, body in bodies(SHAPES[api]):
            async with Pulse() as pulse:
                status, answer = await post(port, path, body)
            assert status in (200, 400), (name, status, answer[:300])
            statuses.add(status)
            held[name] = pulse.held_s
    assert statuses == {200, 400}
    assert {name: seconds for name, seconds in held.items() if seconds > MAX_HELD_S} == {}


_HEAD = b"host: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
_JSON = b'{"prompt":"x","max_tokens":1}'
_POST = b"POST %b HTTP/1.1\r\n" % GENERATE.encode() + _HEAD
_ONCE = b"content-length: %d\r\n\r\n%b" % (len(_JSON), _JSON)
ODD = {
    "chunks of one byte": (400, _POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n"),
    "many parameters": (400, b"GET /v1/requests?" + b"a=&" * 21_000 + b" HTTP/1.1\r\n" + _HEAD + b"\r\n"),
    "many parameters of a POST": (400, _POST.replace(b" HTTP", b"?" + b"a&" * 31_000 + b" HTTP", 1) + _ONCE),
    "many headers": (200, _POST + b"a:\r\n" * 12_000 + _ONCE),
    "many addresses": (200, _POST + b"x-forwarded-for: " + b"127.0.0.1," * 6_000 + b"127.0.0.1\r\n" + _ONCE),
    "many kinds": (415, _POST + b"content-type: " + b";a" * 30_000 + b"\r\n" + _ONCE),
    "many codings": (200, _POST + b"content-encoding: " + b"," * 60_000 + b"\r\n" + _ONCE),
}


@pytest.mark.usefixtures("quiet_collector")
@pytest.mark.parametrize("name", ODD)
async def test_no_head_and_no_framing_holds_the_event_loop(name: str) -> None:
    status, request = ODD[name]
    async with serving(trusted_proxies=["127.0.0.0/8"]) as port, Pulse() as pulse:
        assert (await ask(port, request))[0] == status
    assert pulse.held_s < MAX_HELD_S


def test_a_gateway_waits_for_no_thread_as_long_as_pythons_own_interval() -> None:
    """In a process of its own, as the interval is the whole process'."""
    program = """
import sys
from penstock.processes import gateway
from penstock.processes.listen import listen_for_clients
from penstock.settings import Settings

def companion(transport, metrics):
    sys.exit(0 if sys.getswitchinterval() <= 0.001 else 3)

settings = Settings(port=0)
gateway.run(settings, listen_for_clients(settings), companion)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def _lists(schema: Any) -> Iterator[dict[str, Any]]:
    """Every list in a pydantic core schema that checks its items."""
    if isinstance(schema, dict):
        if schema.get("type") == "list" and schema.get("items_schema", {"type": "any"})["type"] != "any":
            yield schema
        for value in schema.values():
            yield from _lists(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _lists(value)


@pytest.mark.parametrize(
    "body",
    [GenerateBody, ChatBody, CompletionBody, EmbeddingBody, ResponseBody, MessagesBody],
    ids=lambda body: body.__name__,
)
def test_a_list_is_checked_up_to_its_first_fault(body: type[BaseModel]) -> None:
    lists = list(_lists(body.__pydantic_core_schema__))
    assert lists
    assert [schema for schema in lists if not schema.get("fail_fast")] == []


# ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_usual_body_stays_on_the_loop() -> None:
    async with serving() as port:
        before = threading.active_count()
        for body in (b'{"prompt":"x","max_tokens":1}', b'{"prompt":"%b","max_tokens":1}' % (b"x" * 30_000)):
            assert (await post(port, GENERATE, body))[0] == 200
        assert threading.active_count() == before
        assert (await post(port, GENERATE, b'{"prompt":"%b","max_tokens":1}' % (b"x" * 40_000)))[0] == 200
        assert threading.active_count() == before + 1


@pytest.mark.parametrize(
    ("body", "large"),
    [(b"x" * LARGE_BYTES, False), (b"x" * (LARGE_BYTES + 1), True), (b"," * LARGE_VALUES, False), (b",[{" * 334, True)],
)
def test_large_is_long_or_of_many_values(body: bytes, large: bool) -> None:
    assert is_large(body) is large


class Line:
    """`LargeBodies` whose thread is held until the test lets it go."""

    def __init__(self) -> None:
        self.large = LargeBodies()
        self.done: list[str] = []
        self.go = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def send(self, caller: str, name: str) -> asyncio.Task[None]:
        """One more body; returns once it waits for its turn, or has it."""

        def work() -> None:
            assert self.go.wait(30.0)
            self.done.append(name)

        task = asyncio.create_task(self.large.run(caller, work))
        await asyncio.sleep(0)
        self._tasks.append(task)
        return task

    async def end(self) -> None:
        self.go.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_callers_take_turns() -> None:
    line = Line()
    for caller, name in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1")]:
        await line.send(caller, name)
    await line.end()
    assert line.done == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_only_so_many_wait() -> None:
    line = Line()
    for number in range(MAX_WAITING_OF_ONE + 1):  # one has the thread
        await line.send("a", f"a{number}")
    refused = await line.send("a", "one too many")
    with pytest.raises(Overloaded, match="MAX_WAITING_OF_ONE"):
        await refused
    for number in range(MAX_WAITING - MAX_WAITING_OF_ONE):
        assert not (await line.send(f"other{number}", "other")).done()
    refused = await line.send("late", "one too many")
    with pytest.raises(Overloaded, match="MAX_WAITING"):
        await refused
    await line.end()
    assert len(line.done) == MAX_WAITING + 1


async def test_a_turn_that_is_given_up_is_passed_on() -> None:
    line = Line()
    await line.send("a", "a1")
    waiting, given = await line.send("b", "b1"), await line.send("c", "c1")
    await line.send("d", "d1")
    waiting.cancel()
    line.large._pass_on()  # as if a1 were done: the turn is c1's, which leaves before it can take it
    given.cancel()
    await line.end()
    assert line.done == ["a1", "d1"]


async def test_an_error_of_the_thread_is_raised_and_the_next_body_is_read() -> None:
    large = LargeBodies()

    def fail() -> None:
        raise InvalidRequest("no", param="x")

    for _ in range(2):
        with pytest.raises(InvalidRequest, match="no"):
            await large.run("a", fail)
    assert await large.run("a", lambda: 1) == 1


# ── the bytes that are held ──────────────────────────────────────────────────────────────────────────────────────────


def test_large_bodies_of_one_caller_and_of_all_have_so_many_bytes() -> None:
    bodies, of_one = LargeBodies(), MAX_HELD_BYTES_OF_ONE
    with contextlib.ExitStack() as stack:
        for number in range(MAX_HELD_BYTES // of_one):
            room = stack.enter_context(bodies.room(f"caller-{number}"))
            assert room.hold(of_one // 2) is None
            assert room.hold(of_one // 2 - 1) is None, "it is known already"
            assert room.hold(of_one) is None, "half of it was held"
            with bodies.room(f"caller-{number}") as more:
                assert isinstance(more.hold(SMALL_BYTES + 1), Overloaded)
                assert more.hold(SMALL_BYTES) is None, "a small one needs no room"
        with bodies.room("another") as late:
            assert isinstance(late.hold(SMALL_BYTES + 1), Overloaded)
    assert bodies.num_held("caller-0") == (0, 0)
    with bodies.room("another") as free:
        assert free.hold(MAX_HELD_BYTES + 1) is None, "one always has room, however large the operator lets it be"
    assert bodies.num_held("another") == (0, 0)


async def test_a_photo_reaches_a_model_that_takes_images() -> None:
    url = "data:image/png;base64," + "A" * (12 * 2**20)
    photo = {"type": "image_url", "image_url": {"url": url}}
    body = json.dumps({"max_tokens": 1, "messages": [{"role": "user", "content": [photo]}]}).encode()
    text = json.dumps({"model": "words", "max_tokens": 1, "prompt": "a" * (12 * 2**20)}).encode()
    async with Upstream() as up:
        eyes = f"eyes=openai:url={up.url},images=data"
        async with serving(models=f"{eyes};words=mock") as port, Pulse() as pulse:
            assert (await post(port, GENERATE, body))[0] == 200
            status, answer = await post(port, GENERATE, text)
    assert up.seen[0].body["messages"][0]["content"] == [photo]
    assert (status, b"PENSTOCK_MAX_BODY_BYTES" in answer) == (413, True)
    assert pulse.held_s < 1.0


async def test_without_such_a_model_it_is_too_large() -> None:
    async with serving() as port:
        status, answer = await post(port, GENERATE, b'{"prompt":"' + b"a" * 2**20 + b'"}')
    assert (status, b"(PENSTOCK_MAX_BODY_BYTES)" in answer) == (413, True)
