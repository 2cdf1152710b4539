"""The conversation of `previous_response_id`, as an engine sees it."""

from __future__ import annotations

import json

import pytest

from tests.support.bodies import RESPONSES
from tests.support.serving import post, serving
from tests.support.upstream import Upstream


@pytest.mark.parametrize(("engine", "names"), [("vllm", {"reasoning", "reasoning_content"}), ("any", set())])
async def test_an_engine_that_wants_it_gets_the_reasoning_of_the_answer(engine: str, names: set[str]) -> None:
    model = f"m=openai:url=URL,engine={engine}"
    async with (
        Upstream("reasoning") as up,
        serving(models=[model.replace("URL", up.url)]) as port,
    ):
        status, first = await post(port, RESPONSES, b'{"input":"x","max_output_tokens":3}')
        assert status == 200, first
        answer = json.loads(first)
        thought = "".join(
            part["text"] for item in answer["output"] if item["type"] == "reasoning" for part in item["content"]
        )
        assert thought
        more = {"input": "y", "max_output_tokens": 3, "previous_response_id": answer["id"]}
        status, second = await post(port, RESPONSES, json.dumps(more).encode())
        assert status == 200, second
    asked, answered, more_asked = up.seen[1].body["messages"]
    assert (asked["content"], more_asked["content"]) == ("x", "y")
    shown = {name: text for name, text in answered.items() if name not in ("role", "content")}
    assert shown == dict.fromkeys(names, thought)
