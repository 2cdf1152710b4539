"""OpenAI's Responses with the official package, over real processes: streams taken up again, deaths, cancellation."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from penstock.backends.mock.text import verify_chain
from penstock.callers.keys import create_key
from tests.support import reading
from tests.support.programs import Site, altered, site
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
OTHER: Any = {"type": "function", "name": "time"}
MODELS = "mock=mock:step_ms=2;hostile=mock:scripted=true;slow=mock:step_ms=20,ends=length;"
MODELS += "plain=mock:tools=false,json=false,reasoning=false"


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with site() as built:
        built.serve("--model", MODELS)
        yield built


@pytest.fixture
def client(server: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.gateways[0]}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def own(server: Site) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.gateways[0]}/v1", api_key="any", max_retries=0) as client:
        yield client


def _told(events: Any) -> list[dict[str, Any]]:
    return [event.to_dict() for event in events]


async def _read_on(stream: Any, seen: list[dict[str, Any]]) -> None:
    async for event in stream:
        seen.append(event.to_dict())


def _text(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def test_whole_streamed_and_retrieved_are_one(client: OpenAI) -> None:
    asked: Any = {"model": "mock", "input": "hello", "max_output_tokens": 6, "metadata": {"a": "b"}, "user": "u"}
    whole = client.responses.create(**asked, instructions="be brief", temperature=0.5)
    assert (whole.status, whole.instructions, whole.metadata) == ("incomplete", "be brief", {"a": "b"})
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 6
    assert client.responses.retrieve(whole.id).to_dict() == whole.to_dict()
    events = _told(client.responses.create(**asked, instructions="be brief", temperature=0.5, stream=True))
    last = events[-1]["response"]
    assert _text(events) == whole.output_text
    assert client.responses.retrieve(last["id"]).to_dict() == last
    same = {name for name in last if last[name] == whole.to_dict()[name]}
    assert set(last) - same <= {"id", "created_at", "output"}


def test_every_number_is_followed_by_all_later_events(client: OpenAI) -> None:
    with client.responses.stream(model="mock", input="hello", max_output_tokens=6) as stream:
        numbers = [event.sequence_number for event in stream]
    assert numbers == list(range(len(numbers)))
    found = client.responses.create(model="mock", input="hello", max_output_tokens=6)
    events = _told(client.responses.retrieve(found.id, stream=True))
    for after in range(len(events)):
        rest = _told(client.responses.retrieve(found.id, stream=True, starting_after=after))
        assert rest == events[after + 1 :]
    with pytest.raises(openai.BadRequestError, match="not there"):
        client.responses.retrieve(found.id, stream=True, starting_after=len(events))
    with client.responses.stream(response_id=found.id, starting_after=5) as again:
        assert [event.sequence_number for event in again] == list(range(6, len(events)))


def test_tools_are_called_and_answered(client: OpenAI) -> None:
    asked: Any = {"model": "mock", "tools": [TOOL], "max_output_tokens": 64}
    with client.responses.stream(input="hello", **asked) as stream:
        names = [event.type for event in stream]
        called = stream.get_final_response()
    assert names.count("response.function_call_arguments.done") == 1
    assert (called.status, len(called.output)) == ("completed", 1)
    call: Any = called.output[0]
    assert (call.type, call.name, list(json.loads(call.arguments))) == ("function_call", "weather", ["city"])
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    by_id = client.responses.create(input=[output], previous_response_id=called.id, **asked)
    assert by_id.previous_response_id == called.id
    given: Any = [{"role": "user", "content": "hello"}, call, output]
    by_hand = client.responses.create(input=given, **asked)
    assert by_id.output_text == by_hand.output_text != ""


class City(BaseModel):
    name: str
    rivers: list[str]
    mayor: str | None


def test_an_answer_is_parsed_reasons_and_ends_by_itself(client: OpenAI) -> None:
    parsed = client.responses.parse(model="mock", input="hello", text_format=City)
    assert parsed.status == "completed"
    assert isinstance(parsed.output_parsed, City)
    with client.responses.stream(model="mock", input="hello", reasoning={"effort": "low"}) as stream:
        final = stream.get_final_response()
    assert (final.status, [item.type for item in final.output]) == ("completed", ["reasoning", "message"])
    again = client.responses.create(model="mock", input="and?", previous_response_id=final.id, tools=[TOOL, OTHER])
    assert [item.type for item in again.output] == ["function_call", "function_call"]
    outputs: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "17"}
        for item in again.output
        if item.type == "function_call"
    ]
    asked: Any = {"model": "mock", "input": outputs, "previous_response_id": again.id, "tools": [TOOL, OTHER]}
    assert client.responses.create(**asked).output_text
    demanded = client.responses.create(**asked, tool_choice={"type": "function", "name": "weather"})
    assert [item.type for item in demanded.output] == ["function_call"]


def test_a_conversation_continues_without_the_old_instructions(client: OpenAI) -> None:
    asked: Any = {"model": "mock", "max_output_tokens": 4}
    first = client.responses.create(input="one", instructions="shout", **asked)
    second = client.responses.create(input="two", previous_response_id=first.id, **asked)
    by_hand: Any = [
        {"role": "user", "content": "one"},
        *[item.to_dict() for item in first.output],
        {"role": "user", "content": "two"},
    ]
    assert client.responses.create(input=by_hand, **asked).output_text == second.output_text
    with pytest.raises(openai.NotFoundError) as forgotten:
        client.responses.create(input="x", previous_response_id=altered(first.id), **asked)
    assert forgotten.value.param == "previous_response_id"
    running = client.responses.create(model="slow", input="x", background=True, max_output_tokens=5000)
    with pytest.raises(openai.BadRequestError) as unfinished:
        client.responses.create(input="x", previous_response_id=running.id, **asked)
    assert unfinished.value.param == "previous_response_id"
    client.responses.cancel(running.id)


async def test_in_the_background_it_is_polled_streamed_and_cancelled(own: AsyncOpenAI) -> None:
    begun = await own.responses.create(model="slow", input="hello", max_output_tokens=10, background=True)
    assert (begun.status, begun.background, begun.output) == ("queued", True, [])

    async def is_over() -> bool:
        return (await own.responses.retrieve(begun.id)).status == "incomplete"

    await wait_until_async(is_over, "it ran to its end by itself")
    streamed: Any = await own.responses.create(
        model="slow", input="hello", max_output_tokens=3000, background=True, stream=True
    )
    seen = [(await anext(streamed)).to_dict() for _ in range(6)]
    assert [event["type"] for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    await streamed.close()
    response_id = seen[0]["response"]["id"]
    assert (await own.responses.retrieve(response_id)).status == "in_progress"
    reading_on: Any = await own.responses.retrieve(response_id, stream=True, starting_after=5)
    assert (await anext(reading_on)).sequence_number == 6
    assert (await own.responses.cancel(response_id)).status == "cancelled"
    rest = [event.to_dict() async for event in reading_on]
    assert (rest[-1]["type"], rest[-1]["response"]["status"]) == ("response.cancelled", "cancelled")
    assert (await own.responses.cancel(response_id)).status == "cancelled"


async def test_a_whole_answer_that_is_cancelled_is_a_response(server: Site, own: AsyncOpenAI) -> None:
    asking = asyncio.create_task(own.responses.create(model="slow", input="long", max_output_tokens=5000))
    async with reading.client() as http:

        async def newest() -> str:
            seen = (await http.get(f"{server.gateways[0]}/v1/requests", params={"limit": 1})).json()["data"]
            return next((str(one["request_id"]) for one in seen if one["state"] == "running"), "")

        await wait_until_async(newest, "it runs")
        await own.responses.cancel(f"resp_{await newest()}")
    assert (await asking).status == "cancelled"


def test_a_response_that_is_not_stored_cannot_be_retrieved(client: OpenAI) -> None:
    kept = client.responses.create(model="mock", input="hello", max_output_tokens=2, store=False)
    assert kept.to_dict()["store"] is False
    calls: list[Callable[[], Any]] = [
        lambda: client.responses.retrieve(kept.id),
        lambda: client.responses.cancel(kept.id),
        lambda: client.responses.create(model="mock", input="x", previous_response_id=kept.id),
        lambda: client.responses.delete(kept.id),
        lambda: client.responses.input_items.list(kept.id),
        lambda: client.responses.retrieve("resp_nonsense"),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as missing:
            call()
        assert missing.value.code == "request_not_found"
    chat = client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "x"}], max_tokens=1)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(chat.id.replace("chatcmpl-", "resp_"))


def test_an_answer_is_one_conversation_in_three_ways(client: OpenAI) -> None:
    """By value, by reference, and by the response's id: the model answers the same."""
    asked: Any = {"model": "mock", "max_output_tokens": 6}
    first = client.responses.create(**asked, input="hello")
    hello: Any = {"role": "user", "content": "hello"}
    more: Any = {"role": "user", "content": "more"}
    values: list[Any] = [item.model_dump() for item in first.output]
    references: list[Any] = [{"type": "item_reference", "id": item.id} for item in first.output]
    ways: list[dict[str, Any]] = [{"input": [hello, *between, more]} for between in (values, references)]
    ways.append({"input": [more], "previous_response_id": first.id})
    answers = [client.responses.create(**asked, **way) for way in ways]
    assert len({answer.output_text for answer in answers}) == 1
    assert len({answer.usage.input_tokens for answer in answers if answer.usage}) == 1
    texts = [
        [item.to_dict()["content"][0]["text"] for item in client.responses.input_items.list(answer.id, order="asc")]  # type: ignore[index]
        for answer in answers
    ]
    assert texts == [["hello", first.output_text, "more"]] * 3
    with pytest.raises(openai.NotFoundError, match="not the id of an item") as unknown:
        client.responses.create(**asked, input=[hello, {"type": "item_reference", "id": "msg_g1.gone_0"}])
    assert unknown.value.param == "input.1.id"


def test_failures(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        client.responses.create(model="hostile", input="[[fail_after=2]]", max_output_tokens=6)
    assert (failed.value.status_code, failed.value.code) == (502, "backend_error")
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="hostile", input="[[fail]]", max_output_tokens=6, stream=True)
    events = _told(client.responses.create(model="hostile", input="[[fail_after=2]]", max_output_tokens=6, stream=True))
    last = events[-1]["response"]
    assert (events[-1]["type"], last["status"], last["error"]["code"]) == ("response.failed", "failed", "server_error")
    assert last["error"]["penstock"] == "backend_error"
    assert client.responses.retrieve(last["id"]).to_dict() == last
    assert _told(client.responses.retrieve(last["id"], stream=True)) == events
    early = client.responses.create(model="hostile", input="[[fail]]", max_output_tokens=6, background=True)
    names = [event["type"] for event in _told(client.responses.retrieve(early.id, stream=True))]
    assert names == ["response.created", "response.queued", "response.failed"]


def _image(url: str) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"model": "plain", "reasoning": {"effort": "low"}}, "reasoning.effort", "unsupported_parameter"),
        ({"model": "plain", "text": {"format": {"type": "json_object"}}}, "text.format", "unsupported_parameter"),
        ({"model": "plain", "tools": [TOOL]}, "tools", "unsupported_parameter"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"max_output_tokens": 200_000}, "max_output_tokens", "invalid_request"),
        (_image("data:image/png;base64,AAAA"), "input", None),
        (_image("file:///etc/passwd"), "input.0.content.0.image_url", "invalid_request"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate", "invalid_request"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: OpenAI, asked: Any, param: str, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**({"model": "mock", "input": "x"} | asked))
    assert (refused.value.param, refused.value.code) == (param, code or "unsupported_parameter")
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_queries_are_strict(server: Site, client: OpenAI) -> None:
    found = client.responses.create(model="mock", input="hello", max_output_tokens=1)
    url = f"{server.gateways[0]}/v1/responses/{found.id}"
    for query, param in (
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("include[]=reasoning.encrypted_content", "include[]"),
        ("stream=true&include_obfuscation=true", "include_obfuscation"),
        ("stream=perhaps", "stream"),
    ):
        answer = httpx2.get(f"{url}?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_client_retries_after_the_given_time() -> None:
    with site() as built:
        built.serve("--model", "mock=mock", "--rate-limit-rpm", "120", "--rate-limit-burst", "1")
        with OpenAI(base_url=f"{built.gateways[0]}/v1", api_key="any", max_retries=0) as hasty:
            hasty.responses.create(model="mock", input="x", max_output_tokens=1)
            with pytest.raises(openai.RateLimitError):
                hasty.responses.create(model="mock", input="x", max_output_tokens=1)
            patient = hasty.with_options(max_retries=5)
            raw = patient.responses.with_raw_response.create(model="mock", input="x", max_output_tokens=1)
            assert raw.retries_taken >= 1


def test_only_ones_own_responses_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = [create_key(path, name=name)[1] for name in ("mine", "yours")]
    with site() as fleet:
        fleet.serve("--api-keys-file", str(path))
        mine, yours = (OpenAI(base_url=f"{fleet.gateways[0]}/v1", api_key=key, max_retries=0) for key in keys)
        with mine, yours:
            found = mine.responses.create(model="mock", input="private", max_output_tokens=2)
            assert mine.responses.retrieve(found.id).id == found.id
            calls: list[Callable[[], Any]] = [
                lambda: yours.responses.retrieve(found.id),
                lambda: yours.responses.retrieve(found.id, stream=True),
                lambda: yours.responses.cancel(found.id),
                lambda: yours.responses.delete(found.id),
                lambda: yours.responses.input_items.list(found.id),
                lambda: yours.responses.create(model="mock", input="x", previous_response_id=found.id),
            ]
            for call in calls:
                with pytest.raises(openai.NotFoundError):
                    call()
            with pytest.raises(openai.AuthenticationError):
                yours.with_options(api_key="wrong").responses.retrieve(found.id)


async def test_a_response_that_one_gateway_has_deleted_is_gone_at_every_other(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker("--model", "mock=mock:step_ms=20,ends=length")
        fleet.gateway(), fleet.gateway()
        here, there = (AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=3) for url in fleet.gateways)
        async with here, there:
            ended = await here.responses.create(model="mock", input="x", max_output_tokens=2, background=True)
            running = await here.responses.create(model="mock", input="x", max_output_tokens=5000, background=True)

            async def is_over() -> bool:
                return (await there.responses.retrieve(ended.id)).status == "incomplete"

            await wait_until_async(is_over, "it has ended")
            for response in (ended, running):
                await there.responses.delete(response.id)
                for client in (here, there):
                    with pytest.raises(openai.NotFoundError):
                        await client.responses.retrieve(response.id)


async def test_a_stream_continues_at_another_gateway_when_its_own_is_killed(redis_url: str) -> None:
    """And its worker too: the events have the same numbers wherever they are told."""
    with site(redis_url) as fleet:
        model = ("--model", "mock=mock:step_ms=20,chain=true,ends=length")
        first = fleet.worker(*model)
        gateways = [fleet.gateway(), fleet.gateway()]
        here, there = (AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) for url in fleet.gateways)
        async with here, there:
            seen: list[dict[str, Any]] = []
            stream = await here.responses.create(model="mock", input="go on", max_output_tokens=400, stream=True)
            while len(seen) < 10:
                seen.append((await anext(stream)).to_dict())
            fleet.worker(*model)
            gateways[0].signal(signal.SIGKILL)
            with pytest.raises(openai.APIError):
                await _read_on(stream, seen)
            response_id = seen[0]["response"]["id"]
            rest = await there.responses.retrieve(response_id, stream=True, starting_after=seen[-1]["sequence_number"])
            seen.append((await anext(rest)).to_dict())
            first.signal(signal.SIGKILL)  # the only one that was there when it began
            await _read_on(rest, seen)
            assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
            deltas = [event["delta"] for event in seen if event["type"] == "response.output_text.delta"]
            assert len(deltas) == 400
            assert verify_chain(deltas) is None
            last = seen[-1]["response"]
            assert (await there.responses.retrieve(response_id)).to_dict() == last
            again = await there.responses.retrieve(response_id, stream=True)
            assert [event.to_dict() async for event in again] == seen
