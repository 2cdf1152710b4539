"""`POST /v1/chat/completions`: its body to `Draft`s, tokens to its chunks and its whole answer. Pure.

Form: https://platform.openai.com/docs/api-reference/chat. What a model cannot do is refused by its capabilities.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import Field

from penstock.api.conversation import ChatMessage, ConversationFields, message_of
from penstock.api.fields import MAX_MESSAGES, PAUSE
from penstock.api.intake import Draft
from penstock.api.openai.fields import ChoiceFields, copies
from penstock.api.openai.form import Form
from penstock.errors import InvalidRequest
from penstock.rich_token import Logprob, Token, ToolCall, Whole, call_id_of, with_call_ids
from penstock.settings import ReasoningField

# Fields of the API that no backend of ours honours, and the values of each that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": (),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
}


class ChatBody(ChoiceFields, ConversationFields):
    """A conversation to answer. Form: https://platform.openai.com/docs/api-reference/chat/create."""

    messages: list[Annotated[ChatMessage, PAUSE]] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of `max_tokens`.")


def drafts_of(body: ChatBody) -> list[Draft]:
    """`n` drafts of one request. Raises `InvalidRequest` for fields that contradict each other."""
    body.check()
    names = body.names()
    if body.max_completion_tokens:
        if body.max_tokens and body.max_tokens != body.max_completion_tokens:
            raise InvalidRequest("Give one of 'max_tokens' and 'max_completion_tokens'.", param="max_completion_tokens")
        names["max_tokens"] = "max_completion_tokens"
    draft = Draft(
        model=body.model,
        messages=tuple([message_of(index, message) for index, message in enumerate(body.messages)]),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        sampling=body.sampling(),
        stream=bool(body.stream),
        timeout_s=body.timeout_s,
        on_disconnect=body.on_disconnect,
        metadata=body.metadata or {},
        user=body.user or "",
        names=names,
    )
    return copies(draft, body.n or 1)


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────


_REASONING_NAMES: dict[ReasoningField, tuple[str, ...]] = {
    "reasoning_content": ("reasoning_content",),
    "reasoning": ("reasoning",),
    "both": ("reasoning_content", "reasoning"),
}


class ChatForm(Form):
    """The chunks and the whole of one chat completion."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        request_id: str,
        model: str,
        created: int,
        *,
        includes_usage: bool = False,
        reasoning_field: ReasoningField = "reasoning_content",
    ) -> None:
        super().__init__(request_id, model, created, includes_usage=includes_usage)
        self._reasoning_names = _REASONING_NAMES[reasoning_field]
        self._called: set[tuple[int, int]] = set()  # choice and index of each call that has begun

    def open(self, index: int) -> list[bytes]:
        return [self.chunk({"index": index, "delta": {"role": "assistant", "content": ""}, **_NOTHING})]

    def token(self, index: int, token: Token) -> bytes:
        # Per token; the slow form is `self.chunk({"index": …, "delta": {"content": token}, **_NOTHING})`.
        # tests/unit/api/test_token_encoders.py holds the two equal.
        if isinstance(token, str):
            return b'%s{"index":%d,"delta":{"content":%s},"logprobs":null,"finish_reason":null}%s' % (
                self.head,
                index,
                msgspec.json.encode(token),
                self.tail,
            )
        delta: dict[str, Any] = {}
        if token.text:
            delta["content"] = token.text
        if token.reasoning:
            delta |= dict.fromkeys(self._reasoning_names, token.reasoning)
        if token.tool_calls:
            delta["tool_calls"] = [{"index": call.index, **self._call_part(index, call)} for call in token.tool_calls]
        logprobs = _logprobs(token.logprobs)
        return self.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})

    def finish(self, index: int, reason: str) -> bytes:
        return self.chunk({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason})

    def choice(self, index: int, whole: Whole, reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.reasoning:
            message |= dict.fromkeys(self._reasoning_names, whole.reasoning)
        if whole.tool_calls:
            whole = with_call_ids(whole, self._job_id(index))
            message["content"] = whole.text or None
            message["tool_calls"] = [_tool_call(call) for call in whole.tool_calls]
        return {"index": index, "message": message, "logprobs": _logprobs(whole.logprobs), "finish_reason": reason}

    def _job_id(self, choice: int) -> str:
        return self.job_ids.get(choice, self.request_id)

    def _call_part(self, choice: int, call: ToolCall) -> dict[str, Any]:
        """The first part of a call has its id, type and name; the others only more of its arguments."""
        function: dict[str, Any] = {"name": call.name} if call.name else {}
        function["arguments"] = call.arguments
        place = choice, call.index
        if place in self._called:
            return {"function": function}
        self._called.add(place)
        call_id = call.id or call_id_of(self._job_id(choice), call.index)  # some engines name none
        return {"id": call_id, "type": "function", "function": function}


_NOTHING = {"logprobs": None, "finish_reason": None}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(logprobs: tuple[Logprob, ...]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    return {"content": [one.as_openai() for one in logprobs], "refusal": None}
