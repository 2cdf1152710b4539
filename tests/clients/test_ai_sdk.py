"""Vercel's AI SDK with its providers for OpenAI (Responses and chat), compatible servers and Anthropic."""

from __future__ import annotations

import functools

import pytest

from tests.clients.program import JS, Program, outcomes

PROGRAM = Program("AI SDK", node=("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic"))
each_provider = pytest.mark.parametrize("provider", ["responses", "chat", "compatible", "anthropic"])


@functools.cache  # one process runs all checks of a provider: its packages take seconds to load
def _outcomes(url: str, provider: str) -> dict[str, str | None]:
    return outcomes("node", JS / "ai_sdk.mjs", provider)


@each_provider
def test_text(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["text"] is None


@each_provider
def test_text_streamed(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["text_streamed"] is None


@each_provider
def test_tools(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["tools"] is None


@each_provider
def test_tools_streamed(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["tools_streamed"] is None


@each_provider
def test_tools_with_reasoning(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["tools_with_reasoning"] is None


@each_provider
def test_tools_with_reasoning_streamed(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["tools_with_reasoning_streamed"] is None


@each_provider
def test_an_object_by_schema(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["an_object_by_schema"] is None


@pytest.mark.parametrize("provider", ["responses", "compatible"])
def test_embeddings(url: str, provider: str) -> None:
    assert _outcomes(url, provider)["embeddings"] is None
