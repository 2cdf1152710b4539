"""litellm as a client, with its prefixes for OpenAI's, vLLM's and Anthropic's APIs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.program import Program

PROGRAM = Program("litellm", python=("litellm",))
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
HELLO: Any = [{"role": "user", "content": "hello"}]
MODELS = pytest.mark.parametrize("model", ["openai/mock", "hosted_vllm/mock"])


def _ask(url: str, model: str = "openai/mock", **options: Any) -> Any:
    import litellm

    return litellm.completion(model, api_base=f"{url}/v1", api_key="any", **{"messages": HELLO, **options})


def test_chat(url: str) -> None:
    answer = _ask(url)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_chat_streamed(url: str) -> None:
    chunks = list(_ask(url, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == _ask(url).choices[0].message.content


@MODELS
def test_tools_with_reasoning_given_back(url: str, model: str) -> None:
    options = {"tools": TOOLS, "reasoning_effort": "low", "allowed_openai_params": ["reasoning_effort"]}
    message = _ask(url, model, **options).choices[0].message
    call = message.tool_calls[0]
    assert call.function.name == "weather"
    json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    last = _ask(url, model, messages=[*HELLO, message, result], **options).choices[0].message
    assert last.content
    assert _ask(url, model, messages=[*HELLO, message, result, last, *HELLO], **options).choices[0].message


def test_json(url: str) -> None:
    answer = _ask(url, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_completion(url: str) -> None:
    import litellm

    answer = litellm.text_completion(
        model="text-completion-openai/mock", prompt="hello", api_base=f"{url}/v1", api_key="any"
    )
    assert answer.choices[0].text


def test_embeddings(url: str) -> None:
    import litellm

    answer = litellm.embedding("openai/mock", input=["one", "two"], api_base=f"{url}/v1", api_key="any")
    assert len(answer.data) == 2


def test_responses(url: str) -> None:
    import litellm

    answer = litellm.responses(model="openai/mock", input="hello", api_base=f"{url}/v1", api_key="any")
    assert answer.status == "completed"


def test_anthropic_form_from_anthropic(url: str) -> None:
    import litellm

    answer = litellm.completion("anthropic/mock", messages=HELLO, api_base=url, api_key="any", tools=TOOLS)
    assert answer.choices[0].message.tool_calls


async def test_anthropic_form_over_openai(url: str) -> None:
    import litellm

    answer = await litellm.anthropic_messages(
        model="openai/mock", messages=HELLO, max_tokens=100, api_base=f"{url}/v1", api_key="any"
    )
    assert answer["content"]
