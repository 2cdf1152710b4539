"""LlamaIndex over its classes for servers with OpenAI's API: `python llama_index_loop.py URL`."""

from __future__ import annotations

import sys
from typing import Any

from checks import run_and_print
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

BASE = f"{sys.argv[1]}/v1"
MODEL: Any = OpenAILike(
    model="mock", api_base=BASE, api_key="any", is_chat_model=True, is_function_calling_model=True, max_retries=0
)
HELLO: Any = [ChatMessage(role="user", content="hello")]


class City(BaseModel):
    """A city."""

    name: str
    population: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


def chat() -> None:
    assert MODEL.chat(HELLO).message.content


def chat_streamed() -> None:
    streamed = "".join(chunk.delta or "" for chunk in MODEL.stream_chat(HELLO))
    assert streamed == MODEL.chat(HELLO).message.content


def completion() -> None:
    assert MODEL.complete("hello").text


async def agent_with_a_tool() -> None:
    agent: Any = FunctionAgent(tools=[weather], llm=MODEL, system_prompt="You know the weather.")
    answer = await agent.run(user_msg="How is the weather?")
    assert [call.tool_name for call in answer.tool_calls] == ["weather"]
    assert str(answer)


def object_by_schema() -> None:
    assert isinstance(MODEL.as_structured_llm(City).complete("Paris").raw, City)


def embeddings() -> None:
    model: Any = OpenAILikeEmbedding(model_name="mock", api_base=BASE, api_key="any")
    one, two = model.get_text_embedding_batch(["one", "two"])
    assert one != two


if __name__ == "__main__":
    run_and_print(chat, chat_streamed, completion, agent_with_a_tool, object_by_schema, embeddings)
