"""OpenAI's Agents SDK, over Responses (its default) and over chat completions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.program import Program

PROGRAM = Program("OpenAI Agents SDK", python=("openai-agents",))
each_api = pytest.mark.parametrize("api", ["responses", "chat_completions"], indirect=True)


class City(BaseModel):
    """A city."""

    name: str
    population: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


@pytest.fixture
def api(url: str, request: pytest.FixtureRequest) -> None:
    """The API that the SDK uses; its client reads the environment."""
    import agents
    from openai import AsyncOpenAI

    agents.set_default_openai_client(AsyncOpenAI(), use_for_tracing=False)
    agents.set_default_openai_api(request.param)


def _agent(**options: Any) -> Any:
    import agents

    return agents.Agent(**{"name": "Helper", "instructions": "Help.", "model": "mock", **options})


def _tooled(**options: Any) -> Any:
    import agents

    return _agent(tools=[agents.function_tool(weather)], **options)


async def _kinds(agent: Any) -> list[str]:
    import agents

    answer = await agents.Runner.run(agent, "How is the weather?")
    assert answer.final_output
    return [item.type for item in answer.new_items]


@each_api
async def test_agent(api: None) -> None:
    assert await _kinds(_agent()) == ["message_output_item"]


@each_api
async def test_agent_streamed(api: None) -> None:
    import agents

    answer = agents.Runner.run_streamed(_tooled(), "How is the weather?")
    events = [event.type async for event in answer.stream_events()]
    assert events.count("raw_response_event") > 5
    assert answer.final_output


@each_api
async def test_agent_with_a_tool(api: None) -> None:
    assert await _kinds(_tooled()) == ["tool_call_item", "tool_call_output_item", "message_output_item"]


@each_api
async def test_agent_with_reasoning_and_a_tool(api: None) -> None:
    import agents

    effort = {"effort": "low", "summary": "auto"}
    kinds = await _kinds(_tooled(model_settings=agents.ModelSettings(reasoning=effort)))
    assert [kind for kind in kinds if kind != "reasoning_item"] == [
        "tool_call_item",
        "tool_call_output_item",
        "message_output_item",
    ]


@each_api
async def test_structured_answer(api: None) -> None:
    import agents

    assert isinstance((await agents.Runner.run(_agent(output_type=City), "Paris")).final_output, City)


@each_api
async def test_handoff(api: None) -> None:
    import agents

    answer = await agents.Runner.run(_agent(handoffs=[_agent(name="Other")]), "hello")
    assert answer.last_agent.name == "Other"


@each_api
async def test_a_second_turn(api: None) -> None:
    import agents

    first = await agents.Runner.run(_tooled(), "How is the weather?")
    again = [*first.to_input_list(), {"role": "user", "content": "And now?"}]
    assert (await agents.Runner.run(_tooled(), again)).final_output
