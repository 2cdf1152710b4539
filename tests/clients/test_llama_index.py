"""LlamaIndex over its classes for servers with OpenAI's API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tests.clients.program import Program

PROGRAM = Program("LlamaIndex", python=("llama-index-llms-openai-like", "llama-index-embeddings-openai-like"))


class City(BaseModel):
    """A city."""

    name: str
    population: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


def _model(url: str) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model="mock", api_base=f"{url}/v1", api_key="any", is_chat_model=True, is_function_calling_model=True
    )


def _hello() -> Any:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(role="user", content="hello")]


def test_chat(url: str) -> None:
    assert _model(url).chat(_hello()).message.content


def test_chat_streamed(url: str) -> None:
    streamed = "".join(chunk.delta or "" for chunk in _model(url).stream_chat(_hello()))
    assert streamed == _model(url).chat(_hello()).message.content


def test_completion(url: str) -> None:
    assert _model(url).complete("hello").text


async def test_agent_with_a_tool(url: str) -> None:
    from llama_index.core.agent.workflow import FunctionAgent

    agent = FunctionAgent(tools=[weather], llm=_model(url), system_prompt="You know the weather.")
    answer = await agent.run(user_msg="How is the weather?")
    assert str(answer)
    assert [call.tool_name for call in answer.tool_calls] == ["weather"]


def test_structured_answer(url: str) -> None:
    assert isinstance(_model(url).as_structured_llm(City).complete("Paris").raw, City)


def test_embeddings(url: str) -> None:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    model = OpenAILikeEmbedding(model_name="mock", api_base=f"{url}/v1", api_key="any")
    one, two = model.get_text_embedding_batch(["one", "two"])
    assert one != two
