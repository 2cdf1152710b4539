"""The answers about a stored response as types, for the OpenAPI document: its deletion, and the items of its input.

What is sent is encoded by hand in `stored` and `listing`; a test holds it to these. Knows no gateway.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from penstock.api.responses.answers import ResponseOutputText
from penstock.http.openapi import AnswerModel


class DeletedResponse(AnswerModel):
    """It is deleted."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ListedText(AnswerModel):
    type: Literal["input_text"]
    text: str


class ListedImage(AnswerModel):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"]
    file_id: None


class ListedMessage(AnswerModel):
    """One turn. Only an assistant's has `output_text`."""

    id: str
    status: Literal["completed"]
    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[ListedText | ListedImage | ResponseOutputText, Field(discriminator="type")]]


class ListedFunctionCall(AnswerModel):
    """A call that an answer asked for."""

    id: str
    status: Literal["completed"]
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ListedFunctionCallOutput(AnswerModel):
    """The result of the call."""

    id: str
    status: Literal["completed"]
    type: Literal["function_call_output"]
    call_id: str
    output: str


class ResponseInputItemList(AnswerModel):
    """Items in the form of a request's `input`, each with an `id`."""

    object: Literal["list"]
    data: list[Annotated[ListedMessage | ListedFunctionCall | ListedFunctionCallOutput, Field(discriminator="type")]]
    first_id: str | None
    last_id: str | None
    has_more: bool
