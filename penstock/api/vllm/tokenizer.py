"""`/tokenize`, `/detokenize`, `/tokenizer_info`: bodies to `Draft`s, results to answers. Pure.

Form: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from penstock.api.conversation import ChatMessage, Tool, message_of
from penstock.api.extras import check_kwargs
from penstock.api.fields import MAX_MESSAGES, MAX_TOOLS, PAUSE, Strict, TokenId, given
from penstock.api.intake import Draft
from penstock.errors import InvalidRequest
from penstock.http.openapi import AnswerModel
from penstock.rich_token import Token, join_text
from penstock.tasks import DETOKENIZE, TOKENIZE, TOKENIZER_INFO, read_info, read_tokenized

# Fields that no backend of ours honours, and the values of each that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "chat_template": (),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
}


class TokenizerFields(Strict):
    model: str | None = Field(None, min_length=1, max_length=200, description="Default: the first model served.")
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")


class TokenizeBody(TokenizerFields):
    """A text or a conversation to tokenize: exactly one of `prompt` and `messages`."""

    prompt: str | None = None
    messages: (
        Annotated[list[Annotated[ChatMessage, PAUSE]], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="They are in the model's prompt; only with `messages`."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Whether the beginning of an answer follows the messages. Default: true."
    )
    continue_final_message: bool | None = Field(
        None, description="Whether the last message is an answer that is not at its end. Default: false."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="For the model's template.")
    add_special_tokens: bool | None = Field(
        None, description="Default: true for a prompt, false for messages, whose template has them."
    )
    return_token_strs: bool | None = Field(None, description="The text of each token, too. Default: false.")


class DetokenizeBody(TokenizerFields):
    """Token ids to turn into text."""

    tokens: list[TokenId] = Field(fail_fast=True)


class TokenizerInfoBody(TokenizerFields):
    """The model whose tokenizer is asked for."""


class TokenizeAnswer(AnswerModel):
    """The ids, and how many they are. `max_model_len` is null where the engine does not report it."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(AnswerModel):
    """The text."""

    prompt: str


class TokenizerInfoAnswer(AnswerModel):
    """The tokenizer's own configuration, in the form of `tokenizer_config.json`: what is in it depends on the model."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    tokenizer_class: str


def tokenize_draft(body: TokenizeBody) -> Draft:
    """Raises `InvalidRequest` for fields that contradict each other."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Give exactly one of 'prompt' and 'messages'.", param="prompt")
    extras = _of_template(body)
    if body.messages is None:
        for name in (["tools"] if body.tools else []) + list(extras):
            raise InvalidRequest(f"'{name}' needs 'messages'.", param=name)
    has_default = body.add_special_tokens is (body.messages is None)
    return Draft(
        model=body.model,
        task=TOKENIZE,
        prompt=body.prompt,
        messages=None
        if body.messages is None
        else tuple([message_of(index, message) for index, message in enumerate(body.messages)]),
        sampling={
            "tools": tuple([{"type": tool.type, "function": given(tool.function)} for tool in body.tools or ()]),
            "add_special_tokens": None if has_default else body.add_special_tokens,
            "return_token_strs": body.return_token_strs or None,
        },
        extras=extras,
        timeout_s=body.timeout_s,
    )


def _of_template(body: TokenizeBody) -> dict[str, Any]:
    """The extras that the template reads, without those that ask for nothing."""
    if body.chat_template_kwargs:
        check_kwargs(body.chat_template_kwargs)
    asked = {
        "add_generation_prompt": False if body.add_generation_prompt is False else None,
        "continue_final_message": body.continue_final_message or None,
        "chat_template_kwargs": body.chat_template_kwargs or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def detokenize_draft(body: DetokenizeBody) -> Draft:
    return Draft(model=body.model, task=DETOKENIZE, inputs=(tuple(body.tokens),), timeout_s=body.timeout_s)


def info_draft(body: TokenizerInfoBody) -> Draft:
    return Draft(model=body.model, task=TOKENIZER_INFO, timeout_s=body.timeout_s)


def tokenized(tokens: Sequence[Token]) -> dict[str, Any]:
    """A `TokenizeAnswer`. Raises `BackendError`."""
    found = read_tokenized(tokens)
    return {
        "count": found.count,
        "max_model_len": found.max_model_len,
        "tokens": found.ids,
        "token_strs": found.strs,
    }


def detokenized(tokens: Sequence[Token]) -> dict[str, Any]:
    """A `DetokenizeAnswer`."""
    return {"prompt": join_text(tokens)}


def info(tokens: Sequence[Token]) -> dict[str, Any]:
    """A `TokenizerInfoAnswer`. Raises `BackendError`."""
    return read_info(tokens)
