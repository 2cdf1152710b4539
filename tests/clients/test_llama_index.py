"""LlamaIndex over its classes for servers with OpenAI's API."""

from __future__ import annotations

import functools

import pytest

from tests.clients.program import PYTHON, Program, outcomes, python_alone

PROGRAM = Program("LlamaIndex", alone=("llama-index-llms-openai-like", "llama-index-embeddings-openai-like"))
CHECKS = ("chat", "chat_streamed", "completion", "agent_with_a_tool", "object_by_schema", "embeddings")


@functools.cache
def _outcomes(url: str) -> dict[str, str | None]:
    return outcomes(python_alone(PROGRAM), PYTHON / "llama_index_loop.py", url)


@pytest.mark.parametrize("check", CHECKS)
def test_its_loop(url: str, check: str) -> None:
    assert _outcomes(url)[check] is None
