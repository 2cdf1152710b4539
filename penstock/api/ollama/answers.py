"""Answers of Ollama's API: lines or one object, vectors, and the forms of all of them for the OpenAPI page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from pydantic import BaseModel

from penstock.api.answer import AnswerResponse
from penstock.api.answer_fields import timings
from penstock.api.ollama.lines import Lines, lines_of, nanoseconds
from penstock.api.opened import Opened
from penstock.errors import PenstockError
from penstock.event import Done, Terminal
from penstock.gateway.relay import Reader
from penstock.rich_token import RichToken, Token, decode_vector

LINES = "application/x-ndjson"


class CalledFunctionAnswer(BaseModel):
    index: int
    name: str
    arguments: dict[str, Any]


class ToolCallAnswer(BaseModel):
    id: str
    function: CalledFunctionAnswer


class OllamaMessageAnswer(BaseModel):
    role: Literal["assistant"]
    content: str
    thinking: str = ""
    tool_calls: list[ToolCallAnswer] = []


class OllamaAnswer(BaseModel):
    """The fields of every line; those of the last one are absent before it. Durations are in nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[dict[str, Any]] | None = None


class OllamaChatAnswer(OllamaAnswer):
    message: OllamaMessageAnswer


class OllamaGenerateAnswer(OllamaAnswer):
    response: str
    thinking: str = ""


class OllamaEmbedAnswer(BaseModel):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingAnswer(BaseModel):
    embedding: list[float]


class OllamaDetails(BaseModel):
    """Of the model's file, which a gateway does not have."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModelAnswer(BaseModel):
    """`digest`: the SHA-256 of its name. `modified_at`: when this gateway started. Sizes are 0: not known."""

    name: str
    model: str
    modified_at: str
    size: int = 0
    digest: str
    details: OllamaDetails = OllamaDetails()


class OllamaRunningAnswer(OllamaModelAnswer):
    size_vram: int = 0
    expires_at: str


class OllamaModelList(BaseModel):
    models: list[OllamaModelAnswer]


class OllamaRunningList(BaseModel):
    models: list[OllamaRunningAnswer]


class OllamaShowAnswer(BaseModel):
    """A model; what only its file has is empty."""

    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    details: OllamaDetails = OllamaDetails()
    model_info: dict[str, Any] = {}
    capabilities: list[str]
    modified_at: str


class OllamaVersionAnswer(BaseModel):
    version: str


class OllamaResponse(AnswerResponse):
    """A chat or a generated text, whole or line by line."""

    stream_type = (b"content-type", LINES.encode())

    def __init__(self, opened: Opened, *, is_stream: bool, is_chat: bool) -> None:
        super().__init__(opened, is_stream=is_stream)
        self.is_chat = is_chat
        self.lines = Lines(self.stream.job, is_chat=is_chat)

    def whole(self, ends: Sequence[Done]) -> bytes:
        (end,) = ends
        return self._read().whole(end, timings(self.stream))

    def failure(self, end: Terminal) -> PenstockError | None:
        return self._read().failure(end)

    def keepalive(self) -> bytes:
        return self.lines.keepalive()

    def token_frames(self, reader: Reader, first: int, tokens: list[Token]) -> list[bytes]:
        return self.lines.all_of(tokens)

    def end_frame(self, reader: Reader, end: Terminal) -> bytes:
        return b"".join(self.lines.end(end, timings(self.stream)))

    def _read(self) -> Lines:
        return lines_of(self.stream.job, self.stream.tokens, is_chat=self.is_chat)


class OllamaEmbedResponse(AnswerResponse):
    """Vectors of the inputs; with `is_single` the older form, of one."""

    is_single = False

    def whole(self, ends: Sequence[Done]) -> bytes:
        (end,) = ends
        stream = self.stream
        vectors = [decode_vector(token.embedding) for token in stream.tokens if isinstance(token, RichToken)]
        if self.is_single:
            return msgspec.json.encode({"embedding": vectors[0]})
        times = timings(stream)
        return msgspec.json.encode(
            {
                "model": stream.job.model,
                "embeddings": vectors,
                "total_duration": nanoseconds(times["total_ms"]),
                "load_duration": nanoseconds(times["queue_ms"]),
                "prompt_eval_count": end.usage.prompt_tokens,
            }
        )
