"""The official `openai` package against real processes: answers, streams, tools, errors, retries, deaths."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from penstock.backends.mock.text import verify_chain
from tests.support import reading
from tests.support.programs import Site, site
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MODELS = "mock=mock:step_ms=2;org/tools:7b=mock;hostile=mock:scripted=true;endless=mock:step_ms=2,ends=length;"
MODELS += "plain=mock:tools=false,json=false,reasoning=false,logprobs=false,embeds=false"


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with site() as built:
        built.serve("--model", MODELS)
        yield built


@pytest.fixture
def client(server: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.gateways[0]}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_the_models(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == ["endless", "hostile", "mock", "org/tools:7b", "plain"]
    one = client.models.retrieve("org/tools:7b")
    assert (one.id, one.object, one.owned_by) == ("org/tools:7b", "model", "penstock")
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-99")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_a_whole_chat_and_its_stream_say_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=HELLO, max_completion_tokens=8)
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 8)
    chunks = list(
        client.chat.completions.create(
            model="mock", messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 9 + ["length"]
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].id.startswith("chatcmpl-")


def test_the_headers_are_those_that_clients_read(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="mock", messages=HELLO, max_tokens=1)
    completion = raw.parse()
    assert completion.id == f"chatcmpl-{raw.headers['x-request-id']}"
    assert raw.request_id == completion._request_id == raw.headers["x-request-id"]
    assert int(raw.headers["openai-processing-ms"]) >= 0


def test_a_stop_string_ends_it(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=HELLO, max_tokens=8)
    words = (whole.choices[0].message.content or "").split(" ")
    cut = client.chat.completions.create(model="mock", messages=HELLO, max_tokens=8, stop=[words[3]])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == " ".join(words[:3]) + " "


def test_n_answers_to_one_question(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "mock", "messages": HELLO, "max_tokens": 6, "n": 3, "seed": 1, "temperature": 1}
    whole = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 18)
    streamed, reasons = ["", "", ""], {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert streamed == texts
    assert reasons == {0: "length", 1: "length", 2: "length"}
    alone = client.chat.completions.create(**(asked | {"n": 1, "seed": 2}))
    assert alone.choices[0].message.content == texts[1]


def test_one_of_n_that_fails_fails_all(client: OpenAI) -> None:
    bad: Any = [{"role": "user", "content": "[[fail_after=2]]"}]
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="hostile", messages=bad, max_tokens=6, n=2)
    assert failed.value.status_code == 502
    assert failed.value.code == "backend_error"
    with pytest.raises(openai.APIError, match="scripted"):
        list(client.chat.completions.create(model="hostile", messages=bad, max_tokens=6, n=2, stream=True))


def test_tools_are_called_and_answered(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "org/tools:7b", "messages": HELLO, "tools": [TOOL], "max_tokens": 64}
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert (call.function.name, list(json.loads(call.function.arguments))) == ("weather", ["city"])
    streamed = ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.function is not None
            streamed += part.function.arguments or ""
    assert streamed == call.function.arguments
    answered = [*HELLO, message.model_dump(), {"role": "tool", "content": "sunny", "tool_call_id": call.id}]
    words = client.chat.completions.create(**(asked | {"messages": answered, "max_tokens": 3}))
    assert words.choices[0].message.tool_calls is None
    assert words.choices[0].message.content


class Step(BaseModel):
    why: str
    kind: Literal["guess", "proof"]


class Solution(BaseModel):
    steps: list[Step] = Field(min_length=2)
    result: float | None
    confidence: int = Field(ge=0, le=10)


def test_an_answer_is_parsed_into_a_model(client: OpenAI) -> None:
    whole = client.chat.completions.parse(model="mock", messages=HELLO, response_format=Solution)
    assert whole.choices[0].finish_reason == "stop"
    found = whole.choices[0].message.parsed
    assert isinstance(found, Solution)
    with client.chat.completions.stream(model="mock", messages=HELLO, response_format=Solution) as stream:
        assert sum(event.type == "content.delta" for event in stream) > 5
        assert stream.get_final_completion().choices[0].message.parsed == found
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="mock", messages=HELLO, response_format=Solution, max_tokens=5)
    impossible: Any = {"name": "x", "schema": {"type": "integer", "minimum": 2, "maximum": 1}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="mock", messages=HELLO, response_format={"type": "json_schema", "json_schema": impossible}
        )
    assert refused.value.param == "response_format"


def test_several_tools_are_called_at_once_with_arguments_of_their_models(client: OpenAI) -> None:
    tools: Any = [
        openai.pydantic_function_tool(Solution, name="solve"),
        openai.pydantic_function_tool(Step, name="step"),
    ]
    whole = client.chat.completions.parse(model="mock", messages=HELLO, tools=tools)
    calls = whole.choices[0].message.tool_calls or []
    assert [type(call.function.parsed_arguments) for call in calls] == [Solution, Step]
    with client.chat.completions.stream(model="mock", messages=HELLO, tools=tools) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in calls]
    single = client.chat.completions.create(model="mock", messages=HELLO, tools=tools, parallel_tool_calls=False)
    assert len(single.choices[0].message.tool_calls or []) == 1
    message = whole.choices[0].message.model_dump(exclude={"parsed"}, exclude_none=True)
    for call in message["tool_calls"]:
        del call["function"]["parsed_arguments"]
    results = [{"role": "tool", "content": "17", "tool_call_id": call.id} for call in calls]
    asked: dict[str, Any] = {"model": "mock", "messages": [*HELLO, message, *results], "tools": tools}
    assert client.chat.completions.create(**asked).choices[0].finish_reason == "stop"
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "step"}}]
    for choice in choices:
        again = client.chat.completions.create(**asked, tool_choice=choice).choices[0]
        assert again.finish_reason == "tool_calls"


def test_reasoning_a_natural_end_and_dictated_words(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=HELLO, reasoning_effort="low").choices[0]
    assert whole.finish_reason == "stop"
    assert (whole.message.content or "").endswith(".")
    assert len(getattr(whole.message, "reasoning_content", "").split()) == 12
    said = client.chat.completions.create(
        model="mock", messages=[{"role": "user", "content": "[[say What you want.]]"}]
    )
    assert said.choices[0].message.content == "What you want."
    endless = client.chat.completions.create(
        model="mock", messages=HELLO, max_tokens=100, extra_body={"ignore_eos": True}
    )
    assert endless.choices[0].finish_reason == "length"


def test_log_probabilities(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == whole.choices[0].message.content
    assert all(len(one.top_logprobs) == 2 for one in logprobs.content)
    legacy = client.completions.create(model="mock", prompt="hello", max_tokens=3, logprobs=1)
    assert legacy.choices[0].logprobs is not None
    assert legacy.choices[0].logprobs.tokens is not None
    assert "".join(legacy.choices[0].logprobs.tokens) == legacy.choices[0].text


def test_completions_of_several_prompts(client: OpenAI) -> None:
    whole = client.completions.create(model="mock", prompt=["one", "two"], max_tokens=4)
    assert len({choice.text for choice in whole.choices}) == 2
    streamed = ["", ""]
    for chunk in client.completions.create(model="mock", prompt=["one", "two"], max_tokens=4, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in whole.choices]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 8)


def test_embeddings(client: OpenAI) -> None:
    """The package asks for base64 by itself, and for numbers when it is told to."""
    one = client.embeddings.create(model="mock", input="hello")
    both = client.embeddings.create(model="mock", input=["hello", "world"], encoding_format="float")
    assert [each.index for each in both.data] == [0, 1]
    assert one.data[0].embedding == pytest.approx(both.data[0].embedding)
    assert both.data[0].embedding != both.data[1].embedding
    assert sum(part * part for part in both.data[1].embedding) == pytest.approx(1)
    assert (both.usage.prompt_tokens, both.usage.total_tokens) == (2, 2)
    assert len(client.embeddings.create(model="mock", input="hello", dimensions=3).data[0].embedding) == 3
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="plain", input="hello")
    assert refused.value.param == "model"


def test_token_ids_in_place_of_texts(client: OpenAI) -> None:
    """As LangChain's OpenAIEmbeddings sends them."""
    vectors = client.embeddings.create(model="mock", input=[[57668, 53901], [5]])
    assert len(vectors.data) == 2
    whole = client.completions.create(model="mock", prompt=[57668, 53901], max_tokens=2)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"model": "plain", "response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"model": "plain", "tools": [TOOL]}, "tools", "unsupported_parameter"),
        ({"presence_penalty": 1}, "presence_penalty", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"max_tokens": 200_000}, "max_tokens", "invalid_request"),
        ({"max_completion_tokens": 200_000}, "max_completion_tokens", "invalid_request"),
        ({"temperature": 9}, "temperature", "invalid_request"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate", "invalid_request"),
        ({"messages": []}, "messages", "invalid_request"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: OpenAI, asked: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**({"model": "mock", "messages": HELLO} | asked))
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_an_unknown_model_and_a_failing_stream(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-99", messages=HELLO)
    assert missing.value.code == "model_not_found"
    bad: Any = [{"role": "user", "content": "[[fail_after=2]]"}]
    seen: list[Any] = []
    with pytest.raises(openai.APIError) as failed:
        seen.extend(client.chat.completions.create(model="hostile", messages=bad, max_tokens=6, stream=True))
    assert failed.value.code == "backend_error"
    assert len([chunk for chunk in seen if chunk.choices[0].delta.content]) == 2


async def test_many_at_once_and_one_that_leaves(server: Site) -> None:
    async with AsyncOpenAI(base_url=f"{server.gateways[0]}/v1", api_key="any", max_retries=0) as client:

        async def one(number: int) -> str:
            asked: Any = [{"role": "user", "content": f"question {number}"}]
            stream = await client.chat.completions.create(model="mock", messages=asked, max_tokens=8, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(one(number) for number in range(64)))
        assert len(set(texts)) == 64
    async with AsyncOpenAI(base_url=f"{server.gateways[0]}/v1", api_key="any") as client, reading.client() as http:

        async def running() -> float:
            return reading.metric((await http.get(f"{server.gateways[0]}/metrics")).text, "penstock_running")

        stream = await client.chat.completions.create(
            model="endless", messages=HELLO, max_tokens=5000, stream=True, n=2
        )
        await anext(aiter(stream))
        assert await running() == 2
        await stream.close()

        async def is_over() -> bool:
            return await running() == 0

        await wait_until_async(is_over, "both answers were cancelled when their one reader left")


def test_the_client_retries_after_the_given_time() -> None:
    """429 with `retry-after-ms`: the package waits as long as it is told, and then its answer is there."""
    with site() as built:
        built.serve("--model", "mock=mock", "--rate-limit-rpm", "120", "--rate-limit-burst", "1")
        with OpenAI(base_url=f"{built.gateways[0]}/v1", api_key="any", max_retries=0) as hasty:
            hasty.chat.completions.create(model="mock", messages=HELLO, max_tokens=1)
            with pytest.raises(openai.RateLimitError) as limited:
                hasty.chat.completions.create(model="mock", messages=HELLO, max_tokens=1)
            headers = limited.value.response.headers
            assert headers["x-should-retry"] == "true"
            assert headers["x-ratelimit-limit-requests"] == "120"
            assert 0 < int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])
            patient = hasty.with_options(max_retries=5)
            raw = patient.chat.completions.with_raw_response.create(model="mock", messages=HELLO, max_tokens=1)
            assert raw.retries_taken >= 1


async def test_a_killed_worker_is_not_seen_by_the_client(redis_url: str) -> None:
    with site(redis_url) as fleet:
        workers = [fleet.worker("--model", "mock=mock:step_ms=20,chain=true,ends=length") for _ in range(2)]
        fleet.gateway()
        async with AsyncOpenAI(base_url=f"{fleet.gateways[0]}/v1", api_key="any", max_retries=0) as client:
            begun = asyncio.Event()

            async def one(number: int) -> list[str]:
                asked: Any = [{"role": "user", "content": f"question {number}"}]
                tokens = []
                stream = await client.chat.completions.create(model="mock", messages=asked, max_tokens=60, stream=True)
                async for chunk in stream:
                    if chunk.choices[0].delta.content:
                        tokens.append(chunk.choices[0].delta.content)
                        begun.set()
                return tokens

            asking = [asyncio.create_task(one(number)) for number in range(16)]
            await begun.wait()
            workers[0].signal(signal.SIGKILL)
            for tokens in await asyncio.gather(*asking):
                assert len(tokens) == 60
                assert verify_chain(tokens) is None
