"""LangChain: chat models, embeddings, agents."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tests.clients.program import Program

PROGRAM = Program("LangChain", python=("langchain", "langchain-openai", "langchain-anthropic", "tiktoken"))


# Where no schema is sent, the mock has to be given the object: it does not read prose.
SAY = 'Paris as JSON [[say {"name": "Paris", "population": 2}]]'


class City(BaseModel):
    """A city."""

    name: str
    population: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


def _chat(**options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="mock", **options)


def _anthropic(**options: Any) -> Any:
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model="mock", **options)


def _has_called(model: Any, **options: Any) -> None:
    """An agent with a tool: question, call, result, answer."""
    from langchain.agents import create_agent

    agent = create_agent(model, [weather], **options)
    messages = agent.invoke({"messages": [{"role": "user", "content": "How is the weather?"}]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[2].content.startswith("sun in ")
    assert messages[3].text


def test_chat(url: str) -> None:
    answer = _chat().invoke("hello")
    assert answer.text
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] > 0


def test_chat_streamed(url: str) -> None:
    chunks = list(_chat(stream_usage=True).stream("hello"))
    assert "".join(chunk.text for chunk in chunks) == _chat().invoke("hello").text
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


def test_agent_with_a_tool(url: str) -> None:
    _has_called(_chat())


def test_agent_over_responses(url: str) -> None:
    _has_called(_chat(use_responses_api=True))


def test_reasoning(url: str) -> None:
    _has_called(_chat(reasoning_effort="low"))


def test_reasoning_over_responses(url: str) -> None:
    _has_called(_chat(reasoning={"effort": "low", "summary": "auto"}, use_responses_api=True))


def test_structured_answers_in_three_ways(url: str) -> None:
    for method, prompt in (("json_schema", "Paris"), ("function_calling", "Paris"), ("json_mode", SAY)):
        answer = _chat().with_structured_output(City, method=method).invoke(prompt)
        assert isinstance(answer, City), method


def test_completions(url: str) -> None:
    from langchain_openai import OpenAI

    assert OpenAI(model="mock").invoke("hello")
    assert len(OpenAI(model="mock").generate([f"hello {number}" for number in range(20)]).generations) == 20


def test_embeddings(url: str) -> None:
    """Of texts. By default it sends token ids, for which its tokenizer loads a file from the network."""
    from langchain_openai import OpenAIEmbeddings

    vectors = OpenAIEmbeddings(model="mock", check_embedding_ctx_length=False).embed_documents(["one", "two"])
    assert len(vectors) == 2
    assert vectors[0] != vectors[1]


def test_anthropic_agent(url: str) -> None:
    _has_called(_anthropic())


def test_anthropic_streamed(url: str) -> None:
    assert "".join(chunk.text for chunk in _anthropic().stream("hello")) == _anthropic().invoke("hello").text


def test_anthropic_thinking(url: str) -> None:
    _has_called(_anthropic(thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=4096))


def test_anthropic_structured_answer(url: str) -> None:
    assert isinstance(_anthropic().with_structured_output(City).invoke("Paris"), City)
