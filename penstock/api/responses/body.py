"""`POST /v1/responses`: its body to a `Draft`, and a job back to the object that describes it. Pure.

Form: https://platform.openai.com/docs/api-reference/responses. A response is the request itself, under another name:
its id is the request's behind `resp_`, and all its fields come from the job and its tokens.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Struct
from pydantic import Field

from penstock.api.fields import (
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    Metadata,
    ReasoningEffort,
    SamplingFields,
    Strict,
    check_tools,
    exactly,
    given,
)
from penstock.api.intake import Draft
from penstock.api.responses.items import Input, messages_of
from penstock.errors import InvalidRequest
from penstock.job import JOB_ID, Job, Message, OnDisconnect, created_at_of

PREFIX = "resp_"
_NAME = re.compile(rf"{PREFIX}({JOB_ID.pattern})")

# Fields of the API that no backend of ours honours, and the values of each that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background_options": (),
    "context_management": (),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "truncation": (),
}


class FunctionTool(Strict):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=200)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Strict):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=200)


class PlainFormat(Strict):
    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    name: str = Field(min_length=1, max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFields(Strict):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None


class ReasoningFields(Strict):
    effort: ReasoningEffort | None = None


class ResponseStreamOptions(Strict):
    include_obfuscation: Annotated[Literal[False], exactly(False)] | None = None


class ResponseBody(SamplingFields):
    """Something to answer. Form: https://platform.openai.com/docs/api-reference/responses/create."""

    input: Input = Field(description="A text, or items: messages, function calls and their outputs.")
    instructions: str | None = Field(None, min_length=1, description="A system message before everything else.")
    max_output_tokens: int | None = Field(None, ge=1)
    previous_response_id: str | None = Field(None, description="Go on from a stored response of yours.")
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=1, fail_fast=True)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    metadata: Metadata | None = None
    store: bool | None = Field(None, description="It can be retrieved after its end. Default: true.")
    background: bool | None = Field(None, description="It runs whether or not anyone reads it. Default: false.")
    stream_options: ResponseStreamOptions | None = None
    on_disconnect: OnDisconnect | None = Field(
        None,
        description="Penstock's own: when the last reader leaves. Default: resume; cancel with `store: false`.",
    )


class Notes(Struct, frozen=True, omit_defaults=True, tag="responses", tag_field="api"):
    """The content of `Job.notes` for a response.

    `has_instructions`: the first message is its instructions. `base`: the request that holds what precedes the
    messages which are kept with this one.
    """

    background: bool = False
    store: bool = True
    has_instructions: bool = False
    previous: str | None = None
    base: str | None = None


class Before(NamedTuple):
    """The conversation that a response continues. The request `base` holds the first `num_held` of the messages."""

    messages: tuple[Message, ...] = ()
    base: str | None = None
    num_held: int = 0


NOTHING = Before()


def notes_of(job: Job) -> Notes | None:
    """None where another API made the job."""
    return msgspec.convert(job.notes, Notes) if job.notes.get("api") == "responses" else None


def request_id_of(response_id: str) -> str | None:
    """None where this can be no response's id."""
    match = _NAME.fullmatch(response_id)
    return None if match is None else match[1]


def draft_of(body: ResponseBody, before: Before = NOTHING) -> Draft:
    """`before`: the conversation of `previous_response_id`. Raises `InvalidRequest` for fields that contradict."""
    _check(body)
    chosen, reasoning = body.tool_choice if body.tools else None, body.reasoning
    messages = messages_of(body.input, before.messages)
    if body.instructions:
        messages = (Message("system", body.instructions), *messages)
    first = int(bool(body.instructions))
    notes = Notes(bool(body.background), body.store is not False, bool(first), body.previous_response_id, before.base)
    return Draft(
        model=body.model,
        messages=messages,
        max_tokens=body.max_output_tokens,
        sampling={
            "temperature": body.temperature,
            "top_p": body.top_p,
            "logprobs": body.top_logprobs or (0 if body.include else None),
            "tools": tuple(_chat_tool(tool) for tool in body.tools or ()),
            "tool_choice": _chat_choice(chosen) if isinstance(chosen, FunctionChoice) else chosen,
            "parallel_tool_calls": body.parallel_tool_calls if body.tools else None,
            "response_format": _chat_format(body.text),
            "reasoning_effort": None if reasoning is None else reasoning.effort,
        },
        stream=bool(body.stream),
        background=bool(body.background),
        is_kept=notes.store,
        timeout_s=body.timeout_s,
        on_disconnect=body.on_disconnect,
        metadata=body.metadata or {},
        user=body.user or "",
        notes=msgspec.to_builtins(notes),
        repeated=(first, first + before.num_held) if before.num_held else (0, 0),
        names={
            "logprobs": "top_logprobs" if body.top_logprobs else "include",
            "max_tokens": "max_output_tokens",
            "messages": "input",
            "reasoning_effort": "reasoning.effort",
            "response_format": "text.format",
        },
    )


def _check(body: ResponseBody) -> None:
    check_tools(body)
    if body.background and body.store is False:
        raise InvalidRequest("A response in the background is stored.", param="store")
    if body.background and body.on_disconnect not in (None, "continue"):
        raise InvalidRequest("A response in the background always continues.", param="on_disconnect")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' needs 'stream': true.", param="stream_options")


# ── between this API's form and that of chat completions, which a `Sampling` has ─────────────────────────────────


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": _but_type(given(tool))}


def _chat_choice(choice: FunctionChoice) -> dict[str, Any]:
    return {"type": "function", "function": {"name": choice.name}}


def _chat_format(text: TextFields | None) -> dict[str, Any] | None:
    if text is None or text.format is None or text.format.type == "text":
        return None
    if isinstance(text.format, PlainFormat):
        return {"type": text.format.type}
    schema = _but_type(given(text.format))
    return {"type": "json_schema", "json_schema": {name.removesuffix("_"): value for name, value in schema.items()}}


def _but_type(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "type"}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "description": None, "parameters": None, "strict": None, **tool["function"]}


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any]:
    if isinstance(choice, dict):
        return {"type": "function", "name": choice["function"]["name"]}
    return choice or "auto"


def _format(format_: dict[str, Any] | None) -> dict[str, Any]:
    if format_ is None:
        return {"type": "text"}
    return {"type": format_["type"], **format_.get("json_schema", {})}


# ── the object for a job ─────────────────────────────────────────────────────────────────────────────────────────


def described(job: Job) -> dict[str, Any]:
    """The response without its result: `status`, `output`, `usage` and errors."""
    sampling = job.sampling
    notes = notes_of(job) or Notes()
    instructions = job.messages[0].content if job.messages and notes.has_instructions else None
    return {
        "id": PREFIX + job.id,
        "object": "response",
        "created_at": created_at_of(job.id),
        "background": notes.background,
        "instructions": instructions,
        "max_output_tokens": sampling.max_tokens if sampling.max_tokens_given else None,
        "metadata": job.metadata,
        "model": job.model,
        "parallel_tool_calls": sampling.parallel_tool_calls is not False,
        "previous_response_id": notes.previous,
        "reasoning": {"effort": sampling.reasoning_effort, "summary": None},
        "service_tier": "default",
        "store": notes.store,
        "temperature": sampling.temperature,
        "text": {"format": _format(sampling.response_format)},
        "tool_choice": _choice(sampling.tool_choice),
        "tools": [_tool(tool) for tool in sampling.tools],
        "top_logprobs": sampling.logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "user": job.user or None,
    }


def own_messages(job: Job) -> tuple[Message, ...]:
    """The messages that a response's job adds to the conversation of its base, without its instructions."""
    notes = notes_of(job)
    return (job.kept().messages or ())[1 if notes and notes.has_instructions else 0 :]
