"""A program over the client that openapi-python-client makes of the OpenAPI document: `python generated.py URL`.

It is run, and read by mypy.
"""

from __future__ import annotations

import json
import sys

from penstock_api import Client
from penstock_api.api.openai import chat_completions_create, embeddings_create, models_list, models_retrieve
from penstock_api.api.penstock import generate, requests_events, requests_retrieve
from penstock_api.models import (
    ChatBody,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChatMessageRole,
    DoneEvent,
    EmbeddingBody,
    EmbeddingList,
    ErrorAnswer,
    GenerateAnswer,
    GenerateBody,
    ModelList,
    RequestAnswer,
    RequestAnswerState,
    TokenEvent,
)

BODY = ChatBody(messages=[ChatMessage(role=ChatMessageRole.USER, content="hello")], model="mock", max_tokens=8)


def chat(client: Client) -> None:
    answer = chat_completions_create.sync(client=client, body=BODY)
    assert isinstance(answer, ChatCompletion)
    text = answer.choices[0].message.content
    assert text
    assert answer.usage.completion_tokens > 0
    assert chat_streamed(client) == text


def chat_streamed(client: Client) -> str:
    """A stream is read by its lines: a generated client has no streams."""
    text = ""
    body = BODY.to_dict() | {"stream": True}
    with client.get_httpx_client().stream("POST", "/v1/chat/completions", json=body) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunk = ChatCompletionChunk.from_dict(json.loads(line[6:]))
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
    return text


def request(client: Client) -> None:
    """The answer, the request object, and its events, which are read as a stream."""
    answer = generate.sync(client=client, body=GenerateBody(prompt="hello", max_tokens=8))
    assert isinstance(answer, GenerateAnswer)
    shown = requests_retrieve.sync(answer.request_id, client=client)
    assert isinstance(shown, RequestAnswer)
    assert (shown.state, shown.text) == (RequestAnswerState.COMPLETED, answer.text)
    events = requests_events._get_kwargs(answer.request_id)
    with client.get_httpx_client().stream(**events) as lines:
        data = [line[6:] for line in lines.iter_lines() if line.startswith("data: ")]
    assert "".join(TokenEvent.from_dict(json.loads(one)).text for one in data[:-1]) == answer.text
    assert DoneEvent.from_dict(json.loads(data[-1])).usage.completion_tokens > 0


def embeddings(client: Client) -> None:
    answer = embeddings_create.sync(client=client, body=EmbeddingBody(input_=["a", "b"], model="mock"))
    assert isinstance(answer, EmbeddingList)
    vector = answer.data[1].embedding
    assert isinstance(vector, list)
    assert vector


def models(client: Client) -> None:
    listed = models_list.sync(client=client)
    assert isinstance(listed, ModelList)
    assert "mock" in [model.id for model in listed.data]
    missing = models_retrieve.sync_detailed("nothing", client=client)
    assert missing.status_code == 404
    assert isinstance(missing.parsed, ErrorAnswer)
    assert (missing.parsed.error.code, missing.parsed.error.param) == ("model_not_found", "model")


if __name__ == "__main__":
    with Client(base_url=sys.argv[1]) as penstock:
        for step in (chat, request, embeddings, models):
            step(penstock)
