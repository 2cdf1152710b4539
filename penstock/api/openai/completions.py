"""`POST /v1/completions`, the older API for plain prompts: its body to `Draft`s, tokens to its chunks. Pure.

Form: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import Field

from penstock.api.fields import GenerationFields, TokenIdList, texts_of
from penstock.api.intake import Draft
from penstock.api.openai.fields import MAX_CHOICES, ChoiceFields, copies
from penstock.api.openai.form import Form
from penstock.errors import InvalidRequest
from penstock.rich_token import Logprob, Token, Whole

MAX_LOGPROBS = 5

REFUSED: dict[str, tuple[Any, ...]] = {"best_of": (1,), "echo": (False,), "suffix": ()}

Prompt = Annotated[str, Field(min_length=1)]


class CompletionBody(ChoiceFields, GenerationFields):
    """A text, or its token ids, to go on from. Form: https://platform.openai.com/docs/api-reference/completions/create."""

    prompt: (
        Prompt
        | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
        | TokenIdList
        | Annotated[list[TokenIdList], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
    ) = Field(
        description="A text, or several; each is a request of its own. By model, a list of token ids in place of each."
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


def drafts_of(body: CompletionBody) -> list[Draft]:
    """`n` drafts of each prompt, in the order of their choices. Raises `InvalidRequest` for too many of them."""
    prompts = texts_of(body.prompt)
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise InvalidRequest(f"'n' times the number of prompts must be at most {MAX_CHOICES}.", param="n")
    drafts = [
        Draft(
            model=body.model,
            prompt=prompt,
            max_tokens=body.max_tokens,
            sampling=body.sampling() | {"logprobs": body.logprobs},
            stream=bool(body.stream),
            timeout_s=body.timeout_s,
            on_disconnect=body.on_disconnect,
            user=body.user or "",
        )
        for prompt in prompts
    ]
    return [copy for draft in drafts for copy in copies(draft, body.n or 1)]


class CompletionForm(Form):
    """The chunks and the whole of one completion."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, request_id: str, model: str, created: int, *, includes_usage: bool = False) -> None:
        super().__init__(request_id, model, created, includes_usage=includes_usage)
        self._offsets: dict[int, int] = {}

    def token(self, index: int, token: Token) -> bytes:
        # Per token; the slow form is `self.chunk(_choice(index, token, (), None))`.
        # tests/unit/api/test_token_encoders.py holds the two equal.
        if isinstance(token, str):
            return b'%s{"index":%d,"text":%s,"logprobs":null,"finish_reason":null}%s' % (
                self.head,
                index,
                msgspec.json.encode(token),
                self.tail,
            )
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(token.text)
        return self.chunk(_choice(index, token.text, token.logprobs, None, offset))

    def finish(self, index: int, reason: str) -> bytes:
        return self.chunk(_choice(index, "", (), reason))

    def choice(self, index: int, whole: Whole, reason: str) -> dict[str, Any]:
        return _choice(index, whole.text, whole.logprobs, reason)


def _choice(
    index: int, text: str, logprobs: tuple[Logprob, ...], reason: str | None, offset: int = 0
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": _logprobs(logprobs, offset), "finish_reason": reason}


def _logprobs(logprobs: tuple[Logprob, ...], at: int) -> dict[str, Any] | None:
    if not logprobs:
        return None
    offsets = []
    for one in logprobs:
        offsets.append(at)
        at += len(one.token)
    return {
        "tokens": [one.token for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [dict(one.top) for one in logprobs],
        "text_offset": offsets,
    }
