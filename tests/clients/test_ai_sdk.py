"""Vercel's AI SDK with its providers for OpenAI (Responses and chat), compatible servers and Anthropic."""

from __future__ import annotations

import pytest

from tests.clients.program import Program, run_js

PROGRAM = Program("AI SDK", node=("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic"))
each_provider = pytest.mark.parametrize("provider", ["responses", "chat", "compatible", "anthropic"])


@each_provider
def test_text(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "text")


@each_provider
def test_text_streamed(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "text_streamed")


@each_provider
def test_tools(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "tools")


@each_provider
def test_tools_streamed(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "tools_streamed")


@each_provider
def test_tools_with_reasoning(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "reasoning")


@each_provider
def test_tools_with_reasoning_streamed(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "reasoning_streamed")


@each_provider
def test_structured_answer(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "object")


@pytest.mark.parametrize("provider", ["responses", "compatible"])
def test_embeddings(url: str, provider: str) -> None:
    run_js("ai_sdk.mjs", provider, "embeddings")
