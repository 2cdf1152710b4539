"""The packages of OpenAI and Anthropic for node. Those for Python are in tests/process, against more than the mock."""

from __future__ import annotations

import functools

import pytest

from tests.clients.program import JS, Program, outcomes

PROGRAM = Program("OpenAI's and Anthropic's packages for node", node=("openai", "@anthropic-ai/sdk"))
OPENAI = ("chat_streamed", "tools", "tools_streamed", "responses_streamed", "embeddings")
ANTHROPIC = ("streamed", "tool_runner")


@functools.cache
def _outcomes(url: str) -> dict[str, str | None]:
    return outcomes("node", JS / "official.mjs")


@pytest.mark.parametrize("check", OPENAI)
def test_openai(url: str, check: str) -> None:
    assert _outcomes(url)[f"openai_{check}"] is None


@pytest.mark.parametrize("check", ANTHROPIC)
def test_anthropic(url: str, check: str) -> None:
    assert _outcomes(url)[f"anthropic_{check}"] is None
