"""Penstock's own API: `POST /v1/generate`, whole or streamed. HTTP body to `Job`, `RelayStream` to JSON or SSE.

Parses once, strictly; nothing behind it checks again. `generate_body` declares what a field may be, and the OpenAPI
page is made from it. Knows no transport and no limits: those are `relay` and `admission`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, create_model
from starlette.responses import Response

from penstock.api.answer import AnswerResponse
from penstock.api.answer_fields import error_data, extra_fields, timings, usage
from penstock.api.conversation import ConversationFields, NativeMessage, message_of
from penstock.api.dialects import begin
from penstock.api.fields import MAX_MESSAGES, PAUSE, exactly
from penstock.api.hints import taken
from penstock.api.intake import Draft, admit_and_submit, receive
from penstock.api.native_answers import GENERATE_EVENTS, AcceptedAnswer, GenerateAnswer
from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.event import Done, Failed, Terminal
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.openapi import SUBMIT_FAILURES, add_route, answer_of
from penstock.job import Job
from penstock.rich_token import Token, join, with_call_ids
from penstock.settings import Settings
from penstock.sse import frame

ENDPOINT = "/v1/generate"


class GenerateBody(ConversationFields):
    """A request to generate text. Exactly one of `prompt` and `messages`."""

    prompt: str | None = Field(None, min_length=1, description="The text to go on from.")
    messages: (
        Annotated[list[Annotated[NativeMessage, PAUSE]], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = Field(None, description="A conversation, instead of `prompt`.")
    background: bool | None = Field(None, description="Answer 202 at once; the request runs on its own.")
    queue_events: bool | None = Field(
        None, description="Events with the place in the queue: at once, never, or (null) after a second of waiting."
    )
    n: Annotated[Literal[1], exactly(1)] | None = Field(
        None, description="A request is one answer: it has one id and one stream."
    )


def generate_body(settings: Settings) -> type[GenerateBody]:
    """`GenerateBody` with the limits that this gateway is set to.

    The schema only shows them: `job_of` holds every API to them, and its error names the setting.
    """
    max_tokens = Field(
        None,
        ge=1,
        json_schema_extra={"maximum": settings.max_tokens_limit},
        description=f"Default: as many as the model has room for, at most {settings.default_max_tokens}.",
    )
    timeout_s = Field(
        None,
        ge=1,
        json_schema_extra={"maximum": settings.max_timeout_s},
        description=f"Seconds until the request is given up. Default: {settings.default_timeout_s:g}.",
    )
    return create_model(
        "GenerateBody",
        __base__=GenerateBody,
        __doc__=GenerateBody.__doc__,
        max_tokens=(int | None, max_tokens),
        timeout_s=(float | None, timeout_s),
    )


class NativeResponse(AnswerResponse):
    """The answer in Penstock's own form: one JSON object, or `token`… then `done` or `error` events."""

    def whole(self, ends: Sequence[Done]) -> bytes:
        stream, (end,) = self.stream, ends
        whole = with_call_ids(join(stream.tokens), stream.job.id)
        return msgspec.json.encode(
            {
                "request_id": stream.job.id,
                "model": stream.job.model,
                "text": whole.text,
                **extra_fields(whole),
                "finish_reason": end.finish_reason,
                "usage": usage(end),
                "timings": timings(stream),
            }
        )

    def token_frames(self, reader: Reader, first: int, tokens: list[Token]) -> list[bytes]:
        stream = reader.stream
        job_id = stream.job.id
        head = f"id: {job_id}/{stream.attempt}-".encode()
        data = b'\nevent: token\ndata: {"request_id":"%s","index":' % job_id.encode()
        encode = msgspec.json.encode
        # Per token; the slow form is `frame("token", …)` with the data as a dict, which `RichToken`s need in part.
        # tests/unit/api/test_token_encoders.py holds the two equal.
        return [
            b'%s%d%s%d,"text":%s}\n\n' % (head, index + 1, data, index, encode(token))
            if isinstance(token, str)
            else b"%s%d%s%d,%s\n\n"
            % (head, index + 1, data, index, encode({"text": token.text, **extra_fields(token)})[1:])
            for index, token in enumerate(tokens, first)
        ]

    def queued_frame(self, position: int, wait_s: float | None) -> bytes:
        estimate = None if wait_s is None else round(wait_s, 1)
        data = {"request_id": self.stream.job.id, "position": position, "estimated_wait_s": estimate}
        return frame("queued", msgspec.json.encode(data))

    def end_frame(self, reader: Reader, end: Terminal) -> bytes:
        stream = self.stream
        position = f"{stream.job.id}/{stream.attempt}-{len(stream.tokens)}"
        if isinstance(end, Failed):
            return frame("error", error_data(end.error(), stream.job.id), position)
        data = {
            "request_id": stream.job.id,
            "model": stream.job.model,
            "finish_reason": end.finish_reason,
            "usage": usage(end),
            "timings": timings(stream),
        }
        return frame("done", msgspec.json.encode(data), position)


def accepted(job: Job) -> Response:
    """202 for a request in the background, with where to look."""
    where = f"/v1/requests/{job.id}"
    body = {"request_id": job.id, "state": "queued", "model": job.model}
    return Response(msgspec.json.encode(body), 202, {"location": where}, "application/json")


class NativeAPI:
    """The routes of this API over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.body = generate_body(gateway.settings)

    def router(self) -> APIRouter:
        router = APIRouter(tags=["penstock"])
        about = "The whole answer; or, with `stream: true`, a `token` event each and then `done` or `error`."
        accepted = answer_of(AcceptedAnswer, about="With `background: true`: it is queued.")
        add_route(
            router,
            "POST",
            ENDPOINT,
            self.generate,
            "generate",
            answer_of(GenerateAnswer, GENERATE_EVENTS, about),
            SUBMIT_FAILURES,
            responses={202: accepted},
            summary="Generate text, whole or as a stream of tokens",
        )
        return router

    async def generate(self, request: Request) -> Response:
        gateway, call = self.gateway, begin(request, ENDPOINT)
        received = await receive(gateway, request, call, self.body, without_several, "native")
        body = received.body
        opened = await admit_and_submit(gateway, call, received, [await received.into(draft_of)])
        if body.background:
            opened.leave_running()
            return accepted(opened.reader.stream.job)
        return NativeResponse(opened, is_stream=bool(body.stream), queue_events=body.queue_events)


def without_several(data: dict[str, Any]) -> dict[str, Any]:
    """`data`, which asks for one answer, without hints. Raises `UnsupportedParameter` for `n` above 1."""
    if isinstance(n := data.get("n"), int) and n > 1:
        why = "a request is one answer here, with one id and one stream; send several, or use /v1/chat/completions"
        raise UnsupportedParameter(f"'n' must be 1: {why}.", param="n")
    return taken(data, "native")


def draft_of(body: GenerateBody) -> Draft:
    """The request in `body`. Raises `InvalidRequest` for fields that contradict each other."""
    body.check()
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Give exactly one of 'prompt' and 'messages'.", param="prompt")
    if body.background and body.stream:
        raise InvalidRequest("A request in the background answers at once; read its events later.", param="stream")
    if body.background and body.on_disconnect not in (None, "continue"):
        raise InvalidRequest("A request in the background always continues.", param="on_disconnect")
    messages = body.messages
    return Draft(
        model=body.model,
        prompt=body.prompt,
        messages=None if messages is None else tuple([message_of(*numbered) for numbered in enumerate(messages)]),
        max_tokens=body.max_tokens,
        sampling=body.sampling(),
        stream=bool(body.stream),
        background=bool(body.background),
        timeout_s=body.timeout_s,
        on_disconnect=body.on_disconnect,
        metadata=body.metadata or {},
        user=body.user or "",
        names=body.names(),
    )
