"""The Python client against real processes, with gateways killed under it: every token once, in both shells."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from penstock import AsyncClient, Client
from penstock.backends.mock.text import verify_chain
from penstock.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, PenstockError, RequestNotFound, Unavailable
from tests.support.programs import Site, site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

NUM_TOKENS = 800
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with site() as built:
        built.serve("--model", "mock=mock:step_ms=5;hostile=mock:scripted=true;plain=mock:tools=false")
        yield built


@pytest.fixture
def client(server: Site) -> Iterator[Client]:
    with Client(server.gateways[0]) as client:
        yield client


def test_whole_streamed_and_in_the_background_say_the_same(client: Client) -> None:
    whole = client.generate("hello", model="mock", max_tokens=6)
    assert (whole.finish_reason, whole.usage.completion_tokens, whole.model) == ("length", 6, "mock")
    assert whole.timings.total_ms is not None
    with client.stream("hello", model="mock", max_tokens=6) as stream:
        tokens = list(stream)
    assert len(tokens) == 6
    assert "".join(tokens) == stream.text == whole.text
    assert stream.answer is not None
    assert (stream.answer.text, stream.answer.request_id) == (whole.text, stream.request_id)
    handle = client.submit("hello", model="mock", max_tokens=6)
    assert handle.result(timeout_s=30).text == whole.text
    assert "".join(client.handle(handle.request_id).stream()) == whole.text
    status = handle.status()
    assert (status.state, status.is_over, status.text) == ("completed", True, whole.text)
    assert handle.request_id in [one.request_id for one in client.requests()]
    assert client.chat(CHAT, model="mock", max_tokens=6).text == client.generate(messages=CHAT, max_tokens=6).text


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


def test_tools_are_called_whole_streamed_and_in_the_background_alike(client: Client) -> None:
    asked: dict[str, Any] = {
        "messages": CHAT,
        "model": "mock",
        "tools": [WEATHER],
        "metadata": {"a": "b"},
        "user": "u",
    }
    whole = client.generate(**asked)
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.tool_calls
    assert (call.name, type(json.loads(call.arguments)["place"])) == ("weather", str)
    with client.stream(**asked) as stream:
        list(stream)
    assert stream.answer is not None
    assert stream.answer.tool_calls == stream.tool_calls == whole.tool_calls
    handle = client.submit(**asked)
    assert handle.result(timeout_s=30).tool_calls == whole.tool_calls
    status = handle.status()
    assert (status.tool_calls, status.metadata, status.user) == (whole.tool_calls, {"a": "b"}, "u")
    with pytest.raises(InvalidRequest) as refused:
        client.generate(**(asked | {"model": "plain"}))
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")


def test_log_probabilities_come_whole_and_streamed(client: Client) -> None:
    whole = client.generate("hello", model="mock", max_tokens=3, logprobs=True, top_logprobs=2)
    assert [one.token for one in whole.logprobs] == list(client.stream("hello", model="mock", max_tokens=3))
    assert all(one.logprob < 0 and len(one.top) == 2 for one in whole.logprobs)
    with client.stream("hello", model="mock", max_tokens=3, logprobs=True, top_logprobs=2) as stream:
        assert stream.result().logprobs == whole.logprobs


def test_the_example_of_tools_in_the_page_of_the_client_runs(server: Site) -> None:
    page = (Path(__file__).parents[2] / "docs/client.md").read_text(encoding="utf-8")
    code = page.partition("## Tools")[2].partition("```python\n")[2].partition("```")[0]
    head, tail = (
        "from penstock import Client\nclient = Client()\n",
        "print([message['role'] for message in messages])\n",
    )
    command = [sys.executable, "-c", head + code + tail]
    environ = os.environ | {"PENSTOCK_URL": server.gateways[0]}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60)
    *words, roles = done.stdout.splitlines()
    assert roles == "['user', 'assistant', 'tool']"
    assert "".join(words).strip()


def test_the_models(client: Client) -> None:
    assert {model.id for model in client.models()} == {"mock", "hostile", "plain"}


def test_an_abandoned_stream_is_cancelled_unless_it_is_to_continue(client: Client) -> None:
    with client.stream("leave", max_tokens=5000) as stream:
        next(iter(stream))
    assert client.handle(stream.request_id).status().state == "cancelled"
    with pytest.raises(RuntimeError, match="left"):
        stream.result()
    with client.stream("go on", max_tokens=40, on_disconnect="continue") as stream:
        next(iter(stream))
    assert client.handle(stream.request_id).result(timeout_s=30).usage.completion_tokens == 40


def test_a_handle_cancels_and_waits_no_longer_than_its_timeout(client: Client) -> None:
    handle = client.submit("long", max_tokens=5000)
    with pytest.raises(DeadlineExceeded):
        handle.result(timeout_s=0.3)
    assert not handle.status().is_over
    assert handle.cancel().state == "cancelled"
    assert handle.cancel().state == "cancelled"


def test_errors_are_the_servers_own(client: Client) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.generate("x", temperature=9)
    assert refused.value.param == "temperature"
    assert refused.value.request_id
    with pytest.raises(ModelNotFound):
        client.generate("x", model="none")
    with pytest.raises(RequestNotFound):
        client.handle("gxxxxxxxxxxx.01ARZ3NDEKTSV4RRFFQ69G5FAV").status()
    with (
        pytest.raises(PenstockError, match="scripted") as failed,
        client.stream("[[fail_after=2]]", model="hostile") as s,
    ):
        list(s)
    assert failed.value.code == "backend_error"


def test_the_same_key_twice_is_one_request(client: Client) -> None:
    first = client.generate("once", max_tokens=3, idempotency_key="k-1")
    assert client.generate("once", max_tokens=3, idempotency_key="k-1").request_id == first.request_id
    with client.stream("once", max_tokens=3) as stream:
        stream.result()
    assert stream.request_id != first.request_id


def test_a_server_that_is_not_there_is_named() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unavailable, match=r"127\.0\.0\.1:9.*penstock serve"):
        client.generate("x")


async def test_a_server_that_is_not_there_is_named_with_await_too() -> None:
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(Unavailable, match=r"Cannot connect to http://127\.0\.0\.1:9.*penstock serve"):
            await client.generate("x")


async def test_async_fan_out(server: Site) -> None:
    async with AsyncClient(server.gateways[0]) as client:
        answers = await asyncio.gather(*(client.generate(f"question {i}", max_tokens=4) for i in range(50)))
        assert len({answer.request_id for answer in answers}) == 50
        handle = await client.submit("hello", max_tokens=4)
        assert (await handle.result(timeout_s=30)).text == (await client.generate("hello", max_tokens=4)).text
        assert (await handle.status()).is_over
        assert len(await client.models()) == 3
        called = await client.chat(CHAT, model="mock", tools=[WEATHER])
        async with client.stream(messages=CHAT, model="mock", tools=[WEATHER]) as asking:
            assert (await asking.result()).tool_calls == called.tool_calls != ()
        assert len(await client.requests(limit=5)) == 5
        async with client.stream("leave", max_tokens=5000) as stream:
            await anext(aiter(stream))
        assert (await client.handle(stream.request_id).status()).state == "cancelled"


class Fleet:
    """A worker and two gateways; `havoc` kills one after the other under whatever runs, and restarts them."""

    def __init__(self, built: Site) -> None:
        self.site = built
        built.worker("--model", "mock=mock:step_ms=10,chain=true", "--max-batches", "8", "--max-batch-size", "8")
        self.programs = [built.gateway(), built.gateway()]

    async def havoc(self, received: list[list[str]]) -> None:
        for number in (0, 1, 0):
            await _more(received, "all get on")
            if all(len(tokens) == NUM_TOKENS for tokens in received):
                return  # on a busy machine a gateway takes longer to start than the streams last
            self.programs[number].signal(signal.SIGKILL)
            self.programs[number].process.wait()
            await _more(received, "all go on")
            url = self.site.gateways[number]
            self.programs[number] = await asyncio.to_thread(self.site.gateway, at=url)


async def _more(received: list[list[str]], what: str) -> None:
    """Wait for twenty more tokens for each, or for their end."""
    wanted = min(sum(map(len, received)) + 20 * len(received), NUM_TOKENS * len(received))
    await wait_until(lambda: sum(map(len, received)) >= wanted, what, 60)


def _check(received: list[list[str]], num_resumed: int) -> None:
    for tokens in received:
        assert len(tokens) == NUM_TOKENS
        assert verify_chain(tokens) is None
    assert num_resumed >= len(received)  # the first kill meets every stream that began there


async def test_streams_survive_their_gateways_async(redis_url: str) -> None:
    with site(redis_url) as built:
        fleet = Fleet(built)
        async with AsyncClient(*built.gateways) as client:
            received: list[list[str]] = [[] for _ in range(12)]
            resumed = 0

            async def one(number: int) -> None:
                nonlocal resumed
                async with client.stream(f"question {number}", max_tokens=NUM_TOKENS) as stream:
                    async for token in stream:
                        received[number].append(token)
                resumed += stream.num_resumed
                assert stream.answer is not None
                assert stream.answer.usage.completion_tokens == NUM_TOKENS

            whole = [asyncio.create_task(client.generate(f"whole {i}", max_tokens=NUM_TOKENS)) for i in range(6)]
            asking = [asyncio.create_task(one(number)) for number in range(12)]
            await asyncio.gather(fleet.havoc(received), *asking)
            for answer in await asyncio.gather(*whole):  # repeated with their keys, each ran once
                assert answer.usage.completion_tokens == NUM_TOKENS
            _check(received, resumed)
            assert len(await client.requests(limit=100)) <= 18


async def test_streams_survive_their_gateways_sync(redis_url: str) -> None:
    with site(redis_url) as built:
        fleet = Fleet(built)
        with Client(*built.gateways) as client, ThreadPoolExecutor(8) as pool:
            received: list[list[str]] = [[] for _ in range(6)]

            def one(number: int) -> int:
                with client.stream(f"question {number}", max_tokens=NUM_TOKENS) as stream:
                    for token in stream:
                        received[number].append(token)
                return stream.num_resumed

            asking = [pool.submit(one, number) for number in range(6)]
            await fleet.havoc(received)
            resumed = [await asyncio.wrap_future(each) for each in asking]
            _check(received, sum(resumed))


async def test_a_rolling_restart_is_not_noticed(redis_url: str) -> None:
    """SIGTERM with a short drain: streams end in `draining` at one gateway and go on at the other."""
    with site(redis_url) as built:
        built.worker("--model", "mock=mock:step_ms=10,chain=true")
        programs = [built.gateway("--drain-s", "0.2"), built.gateway("--drain-s", "0.2")]
        tokens: list[str] = []
        outcome: list[Any] = []

        def follow() -> None:
            with Client(*built.gateways) as client, client.stream("question", max_tokens=NUM_TOKENS) as stream:
                for token in stream:
                    tokens.append(token)
                outcome.append(stream.num_resumed)

        following = asyncio.create_task(asyncio.to_thread(follow))
        await wait_until(lambda: tokens, "it has begun")
        await asyncio.to_thread(programs[0].stop)
        await following
        assert outcome == [1]
        assert len(tokens) == NUM_TOKENS
        assert verify_chain(tokens) is None
