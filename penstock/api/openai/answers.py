"""The answers of OpenAI's older APIs as types, for the OpenAPI document: chat completions, completions, embeddings and
models.

What is sent is encoded by hand in this folder; a test holds it to these. Knows no gateway.
"""

from __future__ import annotations

from typing import Literal

from penstock.api.native_answers import AnswerReason, UsageAnswer
from penstock.http.openapi import OPTIONAL, AnswerModel, ErrorAnswer, Events


class TopLogprob(AnswerModel):
    """`bytes`: those of the token, as it may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer with its log probability, and the likeliest tokens at its place, if they were asked for."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(AnswerModel):
    content: list[TokenLogprob]
    refusal: None


# ── chat completions ─────────────────────────────────────────────────────────────────────────────────────────────


class CalledFunctionAnswer(AnswerModel):
    """`arguments` is the text of a JSON object, as the model wrote it."""

    name: str
    arguments: str


class ChatToolCall(AnswerModel):
    id: str
    type: Literal["function"]
    function: CalledFunctionAnswer


class AssistantMessage(AnswerModel):
    """`content` is null where the model called tools instead.

    The reasoning is not OpenAI's own, but common, under two names: the gateway's settings choose one, or both.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = OPTIONAL
    reasoning: str = OPTIONAL
    tool_calls: list[ChatToolCall] = OPTIONAL


class ChatChoice(AnswerModel):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: AnswerReason


class ChatCompletion(AnswerModel):
    """The whole answer, in OpenAI's form."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer


class CalledFunctionPart(AnswerModel):
    name: str = OPTIONAL
    arguments: str


class ChatToolCallPart(AnswerModel):
    """A part of a call: those of one `index` are joined. The first one has `id`, `type` and the name."""

    index: int
    id: str = OPTIONAL
    type: Literal["function"] = OPTIONAL
    function: CalledFunctionPart


class ChatDelta(AnswerModel):
    role: Literal["assistant"] = OPTIONAL
    content: str = OPTIONAL
    reasoning_content: str = OPTIONAL
    reasoning: str = OPTIONAL
    tool_calls: list[ChatToolCallPart] = OPTIONAL


class ChatChunkChoice(AnswerModel):
    index: int
    delta: ChatDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: AnswerReason | None


class ChatCompletionChunk(AnswerModel):
    """The data of one event. `usage` is there if it was asked for, and null in all chunks but the last, which has no
    choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageAnswer | None = OPTIONAL


CHAT_EVENTS = Events("ChatCompletionEvent", (ChatCompletionChunk, ErrorAnswer))


# ── completions ──────────────────────────────────────────────────────────────────────────────────────────────────


class CompletionLogprobs(AnswerModel):
    """Lists of one length, with an item for each token. `text_offset` counts characters of the answer's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(AnswerModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: AnswerReason


class TextCompletion(AnswerModel):
    """The whole answer, in OpenAI's form."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer


class CompletionChunkChoice(AnswerModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: AnswerReason | None


class TextCompletionChunk(AnswerModel):
    """The data of one event. `usage` is there if it was asked for, and null in all chunks but the last, which has no
    choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: UsageAnswer | None = OPTIONAL


COMPLETION_EVENTS = Events("TextCompletionEvent", (TextCompletionChunk, ErrorAnswer))


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────────────────────


class EmbeddingVector(AnswerModel):
    """`embedding`: numbers, or with `encoding_format: base64` float32 ones, little-endian, in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(AnswerModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(AnswerModel):
    """A vector for each input, in their order."""

    object: Literal["list"]
    data: list[EmbeddingVector]
    model: str
    usage: EmbeddingUsage


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────


class ModelAnswer(AnswerModel):
    """A model in OpenAI's form, and in Anthropic's. Both times are those at which this gateway started."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str


class ModelList(AnswerModel):
    """All of them: there is one page."""

    object: Literal["list"]
    data: list[ModelAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None
