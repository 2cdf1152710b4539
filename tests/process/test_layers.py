"""Penstock before Penstock: the upper one knows the lower one as an OpenAI-compatible server only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from penstock.backends.mock.text import verify_chain
from tests.support.programs import Site, site

pytestmark = pytest.mark.timeout(120)

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def layers() -> Iterator[Site]:
    with site() as built:
        built.serve("--model", "small=mock:step_ms=3,chain=true;tools=mock;vectors=mock")
        url = built.gateways[0]
        accepts = "accepts=temperature+top_p+stop+seed+logprobs"
        built.serve(
            "--model",
            ";".join(
                [
                    f"big=openai:url={url},model=small,{accepts},health=/readyz",
                    f"tools=openai:url={url},accepts=stop+tools+tool_choice+parallel_tool_calls",
                    f"vectors=openai:url={url},task=embed",
                    f"words=openai:url={url},model=small,engine=vllm,task=generate+score",
                ]
            ),
        )
        yield built


def _client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def test_two_layers_answer_as_one_does(layers: Site) -> None:
    lower, upper = map(_client, layers.gateways)
    with lower, upper:
        for asked in (
            {"max_tokens": 12},
            {"max_tokens": 12, "seed": 3, "temperature": 0.5},
            {"max_tokens": 12, "n": 2},
        ):
            below = lower.chat.completions.create(model="small", messages=HELLO, **asked)
            above = upper.chat.completions.create(model="big", messages=HELLO, **asked)
            assert above.choices == below.choices
            assert above.usage == below.usage
        logprobs = upper.chat.completions.create(
            model="big", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
        )
        assert logprobs.choices[0].logprobs is not None
        assert len(logprobs.choices[0].logprobs.content or []) == 3
        text = "".join(
            chunk.choices[0].text
            for chunk in upper.completions.create(model="big", prompt="hi", max_tokens=12, stream=True)
        )
        assert text == lower.completions.create(model="small", prompt="hi", max_tokens=12).choices[0].text
        assert verify_chain([f"{part}]" for part in text.split("]")[:-1]]) is None


def test_tools_and_embeddings_go_through_both_layers(layers: Site) -> None:
    with _client(layers.gateways[1]) as upper:
        chat = upper.chat.completions.create(model="tools", messages=HELLO, tools=[TOOL], max_tokens=64)
        assert chat.choices[0].finish_reason == "tool_calls"
        call: Any = (chat.choices[0].message.tool_calls or [])[0]
        assert list(json.loads(call.function.arguments)) == ["city"]
        vectors = upper.embeddings.create(model="vectors", input=["a", "b"], dimensions=5)
        assert [len(row.embedding) for row in vectors.data] == [5, 5]
        with pytest.raises(openai.BadRequestError) as refused:
            upper.chat.completions.create(model="vectors", messages=HELLO)
        assert refused.value.param == "model"


def test_tasks_and_token_ids_go_through_both_layers(layers: Site) -> None:
    """The upper one knows the lower one as vLLM."""

    def both(path: str, **body: Any) -> Any:
        answers = []
        for url, model in zip(layers.gateways, ("small", "words"), strict=True):
            answer = httpx2.post(f"{url}{path}", json={"model": model, **body}, timeout=30.0)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
        for answer in answers:  # these are of the layer that answers
            for name in ("id", "model", "created"):
                answer.pop(name, None)
        assert answers[0] == answers[1]
        return answers[0]

    tokens = both("/tokenize", prompt="hello sea", add_special_tokens=False, return_token_strs=True)["tokens"]
    assert both("/detokenize", tokens=tokens) == {"prompt": "hello sea"}
    assert both("/tokenizer_info")["tokenizer_class"] == "MockTokenizer"
    assert both("/v1/messages/count_tokens", messages=HELLO) == {"input_tokens": 2}
    assert both("/v1/score", text_1="a b", text_2=["a b", "c"])["data"][0]["score"] == 1.0
    assert both("/v1/rerank", query="a b", documents=["c", "a b"])["results"][0]["index"] == 1
    assert both("/v1/completions", prompt=tokens, max_tokens=4)["usage"]["prompt_tokens"] == 2


def test_a_refusal_of_the_lower_layer_is_the_error_of_the_upper_one(layers: Site) -> None:
    with _client(layers.gateways[1]) as upper:
        with pytest.raises(openai.BadRequestError) as refused:  # this layer lets through what the one below may not
            upper.chat.completions.create(
                model="tools", messages=[*HELLO, {"role": "tool", "content": "x", "tool_call_id": ""}], tools=[TOOL]
            )
        assert refused.value.param
        with pytest.raises(openai.BadRequestError) as refused:
            upper.chat.completions.create(model="big", messages=HELLO, presence_penalty=1)
        assert (refused.value.param, refused.value.code) == ("presence_penalty", "unsupported_parameter")


async def test_many_at_once_through_both_layers(layers: Site) -> None:
    async with AsyncOpenAI(base_url=f"{layers.gateways[1]}/v1", api_key="any", max_retries=0) as upper:

        async def one(number: int) -> str:
            asked: Any = [{"role": "user", "content": f"question {number}"}]
            answer = await upper.chat.completions.create(model="big", messages=asked, max_tokens=10)
            return answer.choices[0].message.content or ""

        texts = await asyncio.gather(*(one(number) for number in range(48)))
        assert len(set(texts)) == 48
