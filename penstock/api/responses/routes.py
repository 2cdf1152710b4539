"""The routes of OpenAI's Responses API over one gateway. A response is a request: any gateway answers for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from penstock import errors
from penstock.api.answer import AnswerResponse
from penstock.api.callers import authenticate
from penstock.api.dialects import OPENAI, begin
from penstock.api.hints import taken
from penstock.api.intake import admit_and_submit, receive
from penstock.api.opened import Opened
from penstock.api.requests import KEPT, cancelled
from penstock.api.responses.answers import RESPONSE_EVENTS, ResponseAnswer
from penstock.api.responses.body import NOTHING, REFUSED, Before, ResponseBody, draft_of
from penstock.api.responses.chain import PARAM, conversation, keep
from penstock.api.responses.events import ResponseEvents, num_events, present, response_of
from penstock.api.responses.references import resolved
from penstock.api.responses.stored import ONE, find_stored
from penstock.api.stream_head import head_of_stream
from penstock.errors import InvalidRequest, PenstockError, RequestNotFound
from penstock.event import Done, Failed, Terminal, fold
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.body_bytes import check_bodiless
from penstock.http.edge import is_head
from penstock.http.json_response import json_response
from penstock.http.openapi import SUBMIT_FAILURES, add_route, answer_of
from penstock.rich_token import Token
from penstock.transports.base import Record

RESPONSES = "/v1/responses"
CANCEL = ONE + "/cancel"

_QUERY = frozenset(("stream", "starting_after", "include_obfuscation"))


_FORMS = "The response in OpenAI's form; with `stream: true`, its events."


class ResponsesAPI:
    """See the head of this file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def router(self) -> APIRouter:
        router = APIRouter(tags=["responses"])
        add = partial(add_route, router)
        found = answer_of(ResponseAnswer, RESPONSE_EVENTS, _FORMS)
        of_one = (errors.Unauthorized, errors.RequestNotFound, errors.RateLimited, errors.StoreUnavailable)
        created = (*SUBMIT_FAILURES, errors.RequestNotFound)
        add("POST", RESPONSES, self.create, "responses_create", found, created)
        retrieved = (*of_one, errors.Overloaded, errors.Draining)
        add("GET", ONE, self.retrieve, "responses_retrieve", found, retrieved)
        cancelled = (*of_one, errors.UnsupportedMediaType)
        add("POST", CANCEL, self.cancel, "responses_cancel", answer_of(ResponseAnswer), cancelled)
        return router

    async def create(self, request: Request) -> Response:
        """Answer an input: OpenAI's Responses."""
        gateway, call = self.gateway, begin(request, RESPONSES, OPENAI)
        received = await receive(
            gateway, request, call, ResponseBody, lambda data: taken(data, "responses", REFUSED), "responses"
        )
        body = received.body
        body.input = await resolved(gateway, received.caller, body.input)
        before, links = await self._before(received.caller, body.previous_response_id)
        opened = await admit_and_submit(gateway, call, received, [await received.into(draft_of, before)])
        stream = opened.reader.stream
        keep(gateway, links, stream.job)
        if body.background and not body.stream:
            opened.leave_running()
            return json_response(present(stream.job, stream.tokens, stream.end, is_queued=not stream.tokens))
        return ResponsesApiResponse(opened, is_stream=bool(body.stream))

    async def retrieve(
        self,
        request: Request,
        response_id: str,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
        include_obfuscation: Annotated[bool, Query(json_schema_extra={"const": False})] = False,
    ) -> Response:
        """A stored response in its present state; with `stream`, its events, all or those after a number."""
        call = begin(request, ONE, OPENAI)
        caller = await authenticate(self.gateway, request, call)
        unknown = next((name for name in request.query_params if name not in _QUERY), None)
        if unknown is not None:
            raise InvalidRequest(f"Unknown query parameter; there are {', '.join(sorted(_QUERY))}.", param=unknown[:64])
        if include_obfuscation:
            raise InvalidRequest("Penstock does not obfuscate streams.", param="include_obfuscation")
        if starting_after is not None and not stream:
            raise InvalidRequest("'starting_after' needs 'stream=true'.", param="starting_after")
        record = await find_stored(self.gateway, caller, response_id, "response_id")
        call.fields["subject"] = record.job.id
        if not stream:
            return _shown(record)
        if is_head(request):
            return head_of_stream()
        permit = await self.gateway.admission.admit(caller, needs_worker=False)
        after = -1 if starting_after is None else starting_after
        try:
            joined = await self.gateway.relay.attach(record.job.id, record)
            end = joined.end if joined.is_ended else None
            if starting_after is not None and after >= (num := num_events(record.job, joined.tokens, end)):
                message = f"Event {after} is not there: the response has {num} events so far."
                raise InvalidRequest(message, param="starting_after")
            reader = self.gateway.relay.read(joined)
        except BaseException:
            permit.release()
            raise
        call.fields["model"] = record.job.model
        opened = Opened(self.gateway, call, [reader], permit)
        return ResponsesApiResponse(opened, is_stream=True, is_replay=True, after=after)

    async def cancel(self, request: Request, response_id: str) -> Response:
        """Cancel it, waiting or running. Answers with what it became; one that has ended stays as it is."""
        call = begin(request, CANCEL, OPENAI)
        caller = await authenticate(self.gateway, request, call)
        check_bodiless(request)
        record = await find_stored(self.gateway, caller, response_id, "response_id")
        call.fields["subject"] = record.job.id
        return _shown(await cancelled(self.gateway, caller, record))

    async def _before(self, caller: Caller, response_id: str | None) -> tuple[Before, list[Record]]:
        """The conversation up to the answer of `response_id`. Raises `RequestNotFound` and `InvalidRequest`."""
        if response_id is None:
            return NOTHING, []
        record = await find_stored(self.gateway, caller, response_id, PARAM)
        if record.job.caller != caller.id:  # an administrator may look at it, and not go on from it
            raise RequestNotFound(f"Response not found; it may have expired ({KEPT}).", param=PARAM)
        return await conversation(self.gateway, caller, record)


class ResponsesApiResponse(AnswerResponse):
    """A response, whole or event by event; of the events, those after the number `after`."""

    def __init__(self, opened: Opened, *, is_stream: bool, is_replay: bool = False, after: int = -1) -> None:
        super().__init__(opened, is_stream=is_stream)
        self.is_replay = is_replay
        self.events = ResponseEvents(self.stream.job)
        self.after = after

    def whole(self, ends: Sequence[Done]) -> bytes:
        (end,) = ends
        return msgspec.json.encode(response_of(self.stream.job, self.stream.tokens, end))

    def failure(self, end: Terminal) -> PenstockError | None:
        return end.error() if isinstance(end, Failed) else None  # a cancelled response is one

    def idle_news(self) -> bytes:
        return self._after(0, self.events.opening()) if not self.events.num else b""

    def token_frames(self, reader: Reader, first: int, tokens: list[Token]) -> list[bytes]:
        number = self.events.num
        frames = self.events.all_of(tokens)
        return frames if number > self.after else [self._after(number, frames)]

    def end_frame(self, reader: Reader, end: Terminal) -> bytes:
        number = self.events.num
        if self.stream.is_ended:
            return self._after(number, self.events.end(end))
        opening = self._after(number, self.events.opening())
        assert isinstance(end, Failed)  # set locally: only what was sent of the response is known
        return opening + self.events.broken(end.error(), self.after)

    def _after(self, number: int, frames: list[bytes]) -> bytes:
        """Those of `frames`, the first of which has this number, that the client has not seen."""
        return b"".join(frames[max(0, self.after + 1 - number) :])


def _shown(record: Record) -> Response:
    folded = fold(record.events)
    is_queued = record.state == "queued" and not folded.tokens
    return json_response(present(record.job, folded.tokens, folded.end, is_queued=is_queued))
