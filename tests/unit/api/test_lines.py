"""A stream of any API is made of lines that all agree on: what Unicode calls a line break stands escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.sse import unbroken
from tests.support.bodies import CHAT, COMPLETIONS, GENERATE, MESSAGES, RESPONSES
from tests.support.serving import post, serving

_BREAKS = "\u0085\u2028\u2029"
_BACKEND = """
from penstock import Backend, RichToken, ToolCall

class Breaks(Backend):
    async def stream(self, job):
        yield "a\\u2028b"
        yield RichToken(reasoning="c\\u2029d")
        yield "é\\x85 ’ f"
        yield RichToken(tool_calls=(ToolCall(0, "id", "name", '{"g":"\\u2028"}'),))
"""
_SLOW = """
import asyncio
from penstock import Backend

class Slow(Backend):
    async def stream(self, job):
        for _ in range(20):
            yield "a\\u2028b"
            await asyncio.sleep(0.01)
"""
_TURN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, {"prompt": "x"}),
        (CHAT, {"messages": [_TURN]}),
        (CHAT, {"messages": [_TURN], "n": 2}),
        (COMPLETIONS, {"prompt": "x"}),
        (RESPONSES, {"input": "x", "instructions": _BREAKS}),
        (MESSAGES, {"messages": [_TURN], "max_tokens": 9}),
    ],
    ids=["generate", "chat", "two answers", "completions", "responses", "messages"],
)
async def test_no_line_of_a_stream_is_broken(path: str, body: dict[str, Any], tmp_path: Path) -> None:
    backend = tmp_path / "breaks.py"
    backend.write_text(_BACKEND, encoding="utf-8")
    async with serving(models=[f"m={backend}:Breaks"]) as port:
        status, answer = await post(port, path, json.dumps(body | {"stream": True}).encode())
    assert status == 200
    text = answer.decode()
    assert not set(_BREAKS) & set(text)
    assert r"a\u2028b" in text
    assert r"é\u0085 ’ f" in text
    for line in text.splitlines():
        if line.startswith("data: {"):
            json.loads(line.removeprefix("data: "))


async def test_a_token_sent_alone_has_no_broken_line(tmp_path: Path) -> None:
    """Each token is on its way before the next one comes."""
    backend = tmp_path / "slow.py"
    backend.write_text(_SLOW, encoding="utf-8")
    async with serving(models=[f"m={backend}:Slow"]) as port:
        _, answer = await post(port, GENERATE, b'{"prompt":"x","stream":true}')
    text = answer.decode()
    assert text.count(r"a\u2028b") == 20
    assert not set(_BREAKS) & set(text)


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(_BREAKS + '\\"’')))
def test_escaped_text_has_the_same_meaning(text: str) -> None:
    data = json.dumps(text, ensure_ascii=False).encode()
    assert json.loads(unbroken(data)) == text
    assert not set(_BREAKS) & set(unbroken(data).decode())


@pytest.mark.parametrize("text", ["plain", "é ’ – 中文"])
def test_text_without_breaks_is_not_copied(text: str) -> None:
    data = text.encode()
    assert unbroken(data) is data
