"""The answers of Ollama's API as types: lines or one object, vectors, models.

Lines and vectors are encoded by hand, in `lines` and `encoded`; a test holds them to these. What is answered about
models is written by these types. Knows no gateway.
"""

from __future__ import annotations

from typing import Any, Literal

from penstock.api.openai.answers import TokenLogprob
from penstock.http.openapi import OPTIONAL, AnswerModel, Events

LINES = "application/x-ndjson"


class OllamaErrorAnswer(AnswerModel):
    """Ollama's envelope of every error. In a stream it is the last line."""

    error: str


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class OllamaCalledFunctionAnswer(AnswerModel):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaToolCallAnswer(AnswerModel):
    id: str
    function: OllamaCalledFunctionAnswer


class OllamaMessageAnswer(AnswerModel):
    role: Literal["assistant"]
    content: str
    thinking: str = OPTIONAL
    tool_calls: list[OllamaToolCallAnswer] = OPTIONAL


class OllamaAnswer(AnswerModel):
    """The fields of every line; those of the last one are absent before it. Durations are in nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] = OPTIONAL
    total_duration: int = OPTIONAL
    load_duration: int = OPTIONAL
    prompt_eval_count: int = OPTIONAL
    prompt_eval_duration: int = OPTIONAL
    eval_count: int = OPTIONAL
    eval_duration: int = OPTIONAL
    logprobs: list[TokenLogprob] = OPTIONAL


class OllamaChatAnswer(OllamaAnswer):
    """The whole answer, or one line of it. Durations are in nanoseconds."""

    message: OllamaMessageAnswer


class OllamaGenerateAnswer(OllamaAnswer):
    """The whole answer, or one line of it. Durations are in nanoseconds."""

    response: str
    thinking: str = OPTIONAL
    tool_calls: list[OllamaToolCallAnswer] = OPTIONAL


CHAT_LINES = Events("OllamaChatLine", (OllamaChatAnswer, OllamaErrorAnswer), media_type=LINES)
GENERATE_LINES = Events("OllamaGenerateLine", (OllamaGenerateAnswer, OllamaErrorAnswer), media_type=LINES)


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────────────────────


class OllamaEmbedAnswer(AnswerModel):
    """A vector for each input, in their order. Durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingAnswer(AnswerModel):
    """The vector of one text."""

    embedding: list[float]


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────


class OllamaDetails(AnswerModel):
    """Of the model's file, which a gateway does not have: all of it is empty."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModelAnswer(AnswerModel):
    """`digest`: the SHA-256 of its name. `modified_at`: when this gateway started. Sizes are 0: not known."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaRunningAnswer(OllamaModelAnswer):
    """A model; all of them are loaded."""

    size_vram: int
    expires_at: str


class OllamaModelList(AnswerModel):
    """The models that live workers serve and the caller may use."""

    models: list[OllamaModelAnswer]


class OllamaRunningList(AnswerModel):
    """The same models."""

    models: list[OllamaRunningAnswer]


class OllamaShowAnswer(AnswerModel):
    """A model; what only its file has is empty."""

    license: str
    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersionAnswer(AnswerModel):
    """The release of Ollama whose API this is."""

    version: str
