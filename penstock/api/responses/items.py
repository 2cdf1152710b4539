"""The input of `POST /v1/responses`: its items, and how they become the messages of a `Job`. Pure.

Form: https://platform.openai.com/docs/api-reference/responses/create. What the API itself answers is taken back as it
was given; its reasoning goes to engines that ask for it, as a part of the answer that it led to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec.structs import replace
from pydantic import Discriminator, Field, Tag

from penstock.api.fields import Strict
from penstock.api.images import ImageLocation
from penstock.errors import InvalidRequest
from penstock.job import Message
from penstock.rich_token import ToolCall

MAX_ITEMS = 1000
MAX_PARTS = 100

ItemId = Annotated[str, Field(min_length=1, max_length=200)]
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = Field(None, description="Taken back as they were answered.")


class InputImage(Strict):
    type: Literal["input_image"]
    image_url: ImageLocation = Field(description="A URL, or a `data:` one.")
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None


ContentPart = Annotated[InputText | OutputText | InputImage, Field(discriminator="type")]


class MessageItem(Strict):
    """One turn; also an answer's message, given back."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    id: ItemId | None = None
    status: Status | None = None
    phase: None = None


class FunctionCallItem(Strict):
    """A call that an answer asked for."""

    type: Literal["function_call"]
    call_id: ItemId
    name: str = Field(min_length=1, max_length=200)
    arguments: str
    id: ItemId | None = None
    status: Status | None = None


OutputPart = Annotated[InputText | InputImage, Field(discriminator="type")]


class FunctionCallOutput(Strict):
    """The result of the call."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: str | Annotated[list[OutputPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    id: ItemId | None = None
    status: Status | None = None


class ReasoningItem(Strict):
    """An answer's reasoning, given back. Where it has no content, its summary counts."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: list[Any]
    content: list[Any] | None = None
    encrypted_content: None = None
    status: Status | None = None

    @property
    def text(self) -> str:
        parts = [part.get("text") for part in self.content or self.summary if isinstance(part, dict)]
        return "\n".join(text for text in parts if isinstance(text, str) and text)


class ItemReference(Strict):
    """An item of a stored response, by its id: `references.py` puts the item in its place."""

    type: Literal["item_reference"] | None = None
    id: ItemId


def _kind(item: Any) -> str | None:
    """A message may leave its type out, and so may a reference."""
    if not isinstance(item, dict):
        return getattr(item, "type", None)
    kind = item.get("type", "item_reference" if item.keys() == {"id"} else "message")
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]

Input = (
    Annotated[str, Field(min_length=1)]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
)


def messages_of(input_: str | Sequence[Item], before: Sequence[Message] = ()) -> tuple[Message, ...]:
    """`before`, which is the conversation so far, and the input behind it.

    Calls are put in the assistant's message that they belong to. Raises `InvalidRequest`.
    """
    if isinstance(input_, str):
        return (*before, Message("user", input_))
    turns = Turns()
    called = {call.id: call.name for message in before for call in message.tool_calls}
    for index, item in enumerate(input_):
        if not isinstance(item, FunctionCallOutput):
            turns.show()
        if isinstance(item, ReasoningItem):
            turns.think(item.text)
        elif isinstance(item, MessageItem):
            message = _message(index, item)
            if item.role == "assistant":
                turns.answer(message.content)
            else:
                turns.add(message)
        elif isinstance(item, FunctionCallItem):
            called[item.call_id] = item.name
            turns.call(item.call_id, item.name, item.arguments)
        elif isinstance(item, FunctionCallOutput):
            if item.call_id not in called:
                raise _fault(index, "call_id", "does not name an earlier call")
            turns.result(item, called[item.call_id])
    turns.show()
    messages = (*before, *turns.messages)
    if not messages:
        raise InvalidRequest("'input' must hold a message.", param="input")
    if len(messages) > MAX_ITEMS:
        raise InvalidRequest(f"The conversation must have at most {MAX_ITEMS} messages.", param="input")
    return messages


class Turns:
    """Messages as items make them: the parts of an answer become one message of the assistant's if it calls a tool.

    Chat templates want the results of calls directly behind the message that has the calls.
    """

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self.messages = list(messages)
        self._thoughts: list[str] = []  # of the answer that comes next
        self._shown: list[InputText | InputImage] = []  # of the results at the end

    def think(self, text: str) -> None:
        """Reasoning: it belongs to the text or the call behind it, if there is one."""
        if text:
            self._thoughts.append(text)

    def answer(self, text: str) -> None:
        """A text of the assistant's."""
        last = self._assistant()
        if last is None or not last.tool_calls:
            self.messages.append(Message("assistant", ""))
        self._extend(text, ())

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """A call of the assistant's."""
        last = self._assistant()
        if last is None:
            self.messages.append(Message("assistant", ""))
        self._extend("", (ToolCall(0 if last is None else len(last.tool_calls), call_id, name, arguments),))

    def add(self, message: Message) -> None:
        """A message of another role."""
        self._thoughts = []
        self.messages.append(message)

    def result(self, item: FunctionCallOutput, name: str) -> None:
        """The result of a call of the function `name`. Engines have text only in it: `show` adds its images."""
        parts: list[InputText | InputImage] = [] if isinstance(item.output, str) else item.output
        output = item.output if isinstance(item.output, str) else _text(parts)
        self.add(Message("tool", output, tool_call_id=item.call_id))
        if images := [part for part in parts if isinstance(part, InputImage)]:
            self._shown += [InputText(type="input_text", text=f"From the result of {name}:"), *images]

    def show(self) -> None:
        """Results have come to their end: their images are in a user's message behind them."""
        if self._shown:
            shown, self._shown = self._shown, []
            self.messages.append(Message("user", _text(shown), parts=tuple(map(_chat_part, shown))))

    def _extend(self, text: str, calls: tuple[ToolCall, ...]) -> None:
        last, thoughts, self._thoughts = self.messages[-1], self._thoughts, []
        reasoning = "\n".join(filter(None, (last.reasoning, *thoughts)))
        calls = last.tool_calls + calls
        self.messages[-1] = replace(last, content=last.content + text, tool_calls=calls, reasoning=reasoning)

    def _assistant(self) -> Message | None:
        """The last message, if it is the assistant's."""
        return self.messages[-1] if self.messages and self.messages[-1].role == "assistant" else None


def _message(index: int, item: MessageItem) -> Message:
    if isinstance(item.content, str):
        return Message(item.role, item.content)
    allowed = (OutputText,) if item.role == "assistant" else (InputText, InputImage)
    for number, part in enumerate(item.content):
        if not isinstance(part, allowed):
            raise _fault(index, f"content.{number}", f"of type '{part.type}' is not allowed in a message of this role")
        if isinstance(part, InputImage) and item.role != "user":
            raise _fault(index, f"content.{number}", "may be an image in a user's message only")
    parts: tuple[dict[str, Any], ...] = ()
    if any(isinstance(part, InputImage) for part in item.content):
        parts = tuple(_chat_part(part) for part in item.content)
    return Message(item.role, _text(item.content), parts=parts)


def _text(parts: Sequence[ContentPart]) -> str:
    return "\n".join([part.text for part in parts if not isinstance(part, InputImage)])


def _chat_part(part: InputText | OutputText | InputImage) -> dict[str, Any]:
    """A `Message` has its parts in the form of chat completions."""
    if isinstance(part, InputImage):
        detail = {"detail": part.detail} if part.detail else {}
        return {"type": "image_url", "image_url": {"url": part.image_url, **detail}}
    return {"type": "text", "text": part.text}


def _fault(index: int, name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"'input.{index}.{name}' {problem}.", param=f"input.{index}.{name}")
