"""Pydantic AI over its three model classes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.program import Program

PROGRAM = Program("Pydantic AI", python=("pydantic-ai-slim",))
MODELS = ("openai-chat:mock", "openai-responses:mock", "anthropic:mock")
each_model = pytest.mark.parametrize("model", MODELS, ids=["chat", "responses", "anthropic"])


class City(BaseModel):
    """A city."""

    name: str
    population: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


def _agent(model: str, **options: Any) -> Any:
    from pydantic_ai import Agent

    return Agent(model, **options)


@each_model
def test_agent(url: str, model: str) -> None:
    assert _agent(model).run_sync("hello").output


@each_model
async def test_agent_streamed(url: str, model: str) -> None:
    async with _agent(model).run_stream("hello") as answer:
        parts = [part async for part in answer.stream_text(delta=True)]
    assert "".join(parts) == (await _agent(model).run("hello")).output


@each_model
def test_agent_with_a_tool(url: str, model: str) -> None:
    answer = _agent(model, tools=[weather]).run_sync("How is the weather?")
    kinds = [part.part_kind for message in answer.all_messages() for part in message.parts]
    assert "tool-return" in kinds
    assert answer.output


@each_model
async def test_agent_with_a_tool_streamed(url: str, model: str) -> None:
    async with _agent(model, tools=[weather]).run_stream("How is the weather?") as answer:
        assert await answer.get_output()


@each_model
def test_thinking_with_a_history(url: str, model: str) -> None:
    settings = {"thinking": "low", "max_tokens": 4096}
    agent = _agent(model, tools=[weather], model_settings=settings)
    first = agent.run_sync("How is the weather?")
    assert agent.run_sync("And now?", message_history=first.all_messages()).output


@each_model
def test_structured_answers(url: str, model: str) -> None:
    from pydantic_ai import NativeOutput, PromptedOutput

    # Where no schema is sent, the mock is given the object. Of an unknown Anthropic model it expects no native output.
    say = 'Paris [[say {"name": "Paris", "population": 2}]]'
    natives = [] if model.startswith("anthropic") else [(NativeOutput(City), "Paris")]
    for output, prompt in ((City, "Paris"), (PromptedOutput(City), say), *natives):
        assert isinstance(_agent(model, output_type=output).run_sync(prompt).output, City), output
