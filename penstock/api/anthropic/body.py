"""`POST /v1/messages`: its body to a `Draft`. Pure.

Form: https://docs.anthropic.com/en/api/messages. What a model cannot do is refused by its capabilities. What the API
itself answers is taken back as it was given; its thinking goes to engines that ask for it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.anthropic.turns import MAX_BLOCKS, MessageParam, Name, TextBlock, messages_of
from penstock.api.fields import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, PAUSE, RequestFields, Stop, Strict
from penstock.api.intake import Draft
from penstock.errors import InvalidRequest

# Fields of the API that no backend of ours honours, and the values of each that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "thread": (),
}


class CustomTool(Strict):
    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class MessagesToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesMetadata(Strict):
    user_id: str | None = Field(None, max_length=512)


class Thinking(Strict):
    """How much to think: a wish, which counts where the model has `reasoning_effort`."""

    type: Literal["adaptive", "enabled", "disabled"] | None = None
    budget_tokens: int | None = Field(None, ge=1)


class JsonFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class MessagesBody(RequestFields):
    """A conversation to answer. Form: https://docs.anthropic.com/en/api/messages."""

    messages: list[Annotated[MessageParam, PAUSE]] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_tokens: int = Field(ge=1)
    system: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=1)
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: MessagesToolChoice | None = None
    metadata: MessagesMetadata | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


def draft_of(body: MessagesBody) -> Draft:
    """The request in `body`. Raises `InvalidRequest` for fields that contradict each other."""
    chosen, messages = _choice(body), messages_of(body.system, body.messages)
    is_single = body.tools and body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
    return Draft(
        model=body.model,
        messages=messages,
        is_begun=messages[-1].role == "assistant",
        max_tokens=body.max_tokens,
        sampling={
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": tuple(body.stop_sequences or ()),
            "tools": tuple(_tool(tool) for tool in body.tools or ()),
            "tool_choice": chosen,
            "parallel_tool_calls": False if is_single else None,
            "response_format": _response_format(body.output_config),
        },
        hints={"reasoning_effort": _effort(body)},
        stream=bool(body.stream),
        timeout_s=body.timeout_s,
        on_disconnect=body.on_disconnect,
        user=(body.metadata and body.metadata.user_id) or "",
        names={
            "stop": "stop_sequences",
            "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
            "response_format": "output_config.format",
        },
    )


def _effort(body: MessagesBody) -> str | None:
    """The effort that is asked for by name, or else by the tokens that thinking may take."""
    if body.output_config is not None and body.output_config.effort is not None:
        return body.output_config.effort
    budget = body.thinking.budget_tokens if body.thinking is not None else None
    if budget is None:
        return None
    return "low" if budget <= 2048 else "medium" if budget <= 8192 else "high"


def _response_format(config: OutputConfig | None) -> dict[str, Any] | None:
    """A `Sampling` has it in the form of OpenAI's chat completions."""
    if config is None or config.format is None:
        return None
    schema = {"name": "answer", "schema": config.format.schema_, "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _tool(tool: CustomTool) -> dict[str, Any]:
    """A `Sampling` has its tools in the form of OpenAI's chat completions."""
    function = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    kept = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": kept | {"parameters": tool.input_schema}}


def _choice(body: MessagesBody) -> str | dict[str, Any] | None:
    choice = body.tool_choice
    if choice is None:
        return None
    if not body.tools:
        if choice.type in ("auto", "none"):
            return None
        raise InvalidRequest("'tool_choice' needs 'tools'.", param="tool_choice")
    if (choice.name is not None) != (choice.type == "tool"):
        raise InvalidRequest("'tool_choice.name' belongs to the type 'tool'.", param="tool_choice.name")
    if choice.name is not None:
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
