"""Anthropic's Messages with the official package, over real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from penstock.callers.keys import create_key
from tests.support import reading
from tests.support.programs import Site, site
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(60)

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
MODELS = "mock=mock:step_ms=2;plain=mock:tools=false;hostile=mock:scripted=true;slow=mock:step_ms=20,ends=length"


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with site() as built:
        built.serve("--model", MODELS)
        yield built


@pytest.fixture
def client(server: Site) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.gateways[0], api_key="any", max_retries=0) as client:
        yield client


def test_a_whole_message_and_its_stream_say_the_same(client: Anthropic) -> None:
    whole = client.messages.create(model="mock", max_tokens=6, messages=HELLO, system="be brief")
    assert (whole.type, whole.role, whole.model, whole.stop_reason) == ("message", "assistant", "mock", "max_tokens")
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (5, 6)
    with client.messages.stream(model="mock", max_tokens=6, messages=HELLO, system="be brief") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert (final.stop_reason, final.usage.to_dict()) == (whole.stop_reason, whole.usage.to_dict())
    assert whole.content[0].to_dict() == {"type": "text", "text": text}


def test_the_tokens_of_a_message_are_counted_before_it_is_made(client: Anthropic) -> None:
    asked: Any = {"model": "mock", "messages": HELLO, "system": "be brief", "tools": [TOOL]}
    counted = client.messages.count_tokens(**asked)
    assert counted.input_tokens == client.messages.create(max_tokens=1, **asked).usage.input_tokens


def test_every_token_is_an_event(server: Site) -> None:
    body = {"model": "mock", "max_tokens": 4, "messages": HELLO, "stream": True}
    answer = httpx2.post(f"{server.gateways[0]}/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == [
        *("message_start", "ping", "content_block_start", *["content_block_delta"] * 4, "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


def test_a_stop_sequence_is_reported_as_far_as_it_is_known(client: Anthropic) -> None:
    whole: Any = client.messages.create(model="mock", max_tokens=8, messages=HELLO)
    words = whole.content[0].text.split(" ")
    cut: Any = client.messages.create(model="mock", max_tokens=8, messages=HELLO, stop_sequences=[words[3]])
    assert cut.content[0].text == " ".join(words[:3]) + " "
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", None)


def test_tools_are_called_and_answered(client: Anthropic) -> None:
    asked: Any = {"model": "mock", "max_tokens": 64, "tools": [TOOL]}
    whole: Any = client.messages.create(messages=HELLO, **asked)
    assert whole.stop_reason == "tool_use"
    (call,) = whole.content
    assert (call.type, call.name, list(call.input)) == ("tool_use", "weather", ["city"])
    with client.messages.stream(messages=HELLO, **asked, tool_choice={"type": "tool", "name": "weather"}) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(parts)) == call.input
    assert [block.to_dict() for block in final.content] == [call.to_dict()]
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    answered = [*HELLO, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    words: Any = client.messages.create(messages=answered, **(asked | {"max_tokens": 3}))
    assert [block.type for block in words.content] == ["text"]


class City(BaseModel):
    name: str
    rivers: list[str]


def test_an_answer_is_parsed_thinks_and_ends_by_itself(client: Anthropic) -> None:
    parsed = client.messages.parse(model="mock", max_tokens=500, messages=HELLO, output_format=City)
    assert parsed.stop_reason == "end_turn"
    assert isinstance(parsed.parsed_output, City)
    thinking: Any = {"type": "enabled", "budget_tokens": 2048}
    with client.messages.stream(model="mock", max_tokens=4096, messages=HELLO, thinking=thinking) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, [block.type for block in final.content]) == ("end_turn", ["thinking", "text"])


def test_the_tool_runner_of_the_package_comes_to_an_end(client: Anthropic) -> None:
    called: list[str] = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return "It rains."

    @anthropic.beta_tool
    def clock(place: str) -> str:
        """The time at a place."""
        called.append(place)
        return "Five."

    runner = client.beta.messages.tool_runner(
        model="mock", max_tokens=500, messages=HELLO, tools=[weather, clock], thread=False
    )
    last = runner.until_done()
    assert len(called) == 2
    assert all(called)
    assert (last.stop_reason, [block.type for block in last.content]) == ("end_turn", ["text"])


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"extra_body": {"container": "c"}}, "container", "unsupported_parameter"),
        ({"model": "plain", "tools": [TOOL]}, "tools", "unsupported_parameter"),
        ({"extra_body": {"top_k": 3}}, "top_k", "unsupported_parameter"),
        ({"extra_body": {"temperature": 1.5}}, "temperature", "invalid_request"),
        ({"extra_body": {"max_tokens": 200_000}}, "max_tokens", "invalid_request"),
        ({"messages": []}, "messages", "invalid_request"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate", "invalid_request"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: Anthropic, asked: Any, param: str, code: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**({"model": "mock", "max_tokens": 4, "messages": HELLO} | asked))
    body: Any = refused.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)
    headers = refused.value.response.headers
    assert refused.value.request_id == body["request_id"] == headers["request-id"] == headers["x-request-id"]
    assert headers["x-should-retry"] == "false"


def test_failures(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude-99", max_tokens=1, messages=HELLO)
    bad: Any = [{"role": "user", "content": "[[fail_after=2]]"}]
    with pytest.raises(anthropic.InternalServerError) as failed:
        client.messages.create(model="hostile", max_tokens=6, messages=bad)
    assert failed.value.status_code == 502
    seen: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError, match="scripted"),
        client.messages.stream(model="hostile", max_tokens=6, messages=bad) as stream,
    ):
        seen.extend(stream.text_stream)
    assert len(seen) == 2


def test_the_key_is_read_and_the_client_retries_after_the_given_time(tmp_path: Any) -> None:
    path = tmp_path / "keys.toml"
    _, key = create_key(path, name="mine")
    with site() as built:
        built.serve("--api-keys-file", str(path), "--rate-limit-rpm", "120", "--rate-limit-burst", "1")
        with Anthropic(base_url=built.gateways[0], api_key="wrong", max_retries=0) as stranger:
            with pytest.raises(anthropic.AuthenticationError) as unknown:
                stranger.messages.create(model="mock", max_tokens=1, messages=HELLO)
            body: Any = unknown.value.body
            assert body["error"]["type"] == "authentication_error"
        with Anthropic(base_url=built.gateways[0], api_key=key, max_retries=0) as hasty:
            hasty.messages.create(model="mock", max_tokens=1, messages=HELLO)
            with pytest.raises(anthropic.RateLimitError) as limited:
                hasty.messages.create(model="mock", max_tokens=1, messages=HELLO)
            assert limited.value.response.headers["x-should-retry"] == "true"
            raw = hasty.with_options(max_retries=5).messages.with_raw_response.create(
                model="mock", max_tokens=1, messages=HELLO
            )
            assert raw.retries_taken >= 1


async def test_many_at_once_and_one_that_leaves(server: Site) -> None:
    async with AsyncAnthropic(base_url=server.gateways[0], api_key="any", max_retries=0) as client:

        async def one(number: int) -> str:
            asked: Any = [{"role": "user", "content": f"question {number}"}]
            async with client.messages.stream(model="mock", max_tokens=8, messages=asked) as stream:
                return "".join([text async for text in stream.text_stream])

        assert len(set(await asyncio.gather(*(one(number) for number in range(32))))) == 32
        async with reading.client() as http:

            async def running() -> float:
                return reading.metric((await http.get(f"{server.gateways[0]}/metrics")).text, "penstock_running")

            async def is_over() -> bool:
                return await running() == 0

            await wait_until_async(is_over, "the others have ended")
            stream = await client.messages.create(model="slow", max_tokens=5000, messages=HELLO, stream=True)
            assert (await anext(stream)).type == "message_start"
            assert (await anext(stream)).type == "content_block_start"
            assert await running() == 1
            await stream.close()
            await wait_until_async(is_over, "it was cancelled when its reader left")
