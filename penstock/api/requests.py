"""The request as an object: look at it, read its events again, cancel it. The same caller only.

Any gateway answers for any request: what it does not hold it reads from the store.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from penstock import errors
from penstock.api.answer_fields import extra_fields, usage
from penstock.api.callers import authenticate, identify
from penstock.api.native import NativeResponse
from penstock.api.native_answers import GENERATE_EVENTS, RequestAnswer, RequestList, RequestState
from penstock.api.opened import Opened
from penstock.api.stream_head import head_of_stream
from penstock.errors import InvalidRequest, RequestNotFound
from penstock.event import Done, Failed, fold
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.edge import Call, call_of, is_head
from penstock.http.json_response import json_response
from penstock.http.openapi import RUN_FAILURES, Failures, add_route, answer_of
from penstock.job import JOB_ID
from penstock.rich_token import join, with_call_ids
from penstock.settings.about import env_name
from penstock.transports.base import JobSummary, Record

PATH = "/v1/requests"
ONE = PATH + "/{request_id}"
EVENTS_END = "/events"
EVENTS = ONE + EVENTS_END
CANCEL_WAIT_S = 1.0
MAX_LISTED = 100
KEPT = f"{env_name('retention_s')}, {env_name('background_retention_s')}"  # how long a request is kept after its end
_POSITION = re.compile(r"([^/]+)/(\d{1,16})-(\d{1,9})")

_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The `id` of the last event that was read: those after it follow.",
    "schema": {"type": "string"},
}
_AFTER = {"parameters": [_LAST_EVENT_ID]}


class RequestsAPI:
    """The routes of this API over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def router(self) -> APIRouter:
        router = APIRouter(tags=["penstock"])
        add = partial(add_route, router)
        always = (errors.Unauthorized, errors.RateLimited, errors.StoreUnavailable)
        of_one = (*always, errors.RequestNotFound)
        read_again: Failures = (*of_one, errors.Draining, *RUN_FAILURES)
        events = answer_of(events=GENERATE_EVENTS, about="The events.")
        add("GET", PATH, self.index, "requests_list", answer_of(RequestList), always)
        add("GET", ONE, self.show, "requests_retrieve", answer_of(RequestAnswer), of_one)
        add("DELETE", ONE, self.cancel, "requests_cancel", answer_of(RequestAnswer), of_one)
        add("GET", EVENTS, self.events, "requests_events", events, read_again, openapi_extra=_AFTER)
        return router

    async def index(self, request: Request, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20) -> Response:
        """Your newest requests, the newest first, without their texts."""
        caller = await authenticate(self.gateway, request, call_of(request))
        async with self.gateway.turns.of(caller.rate_key):
            ids = await self.gateway.operators.requests_of(caller.id, limit)
            seen = [one for one in await self.gateway.operators.read_summary(ids) if one is not None]
            places = await self.gateway.places.look() if any(one.state == "queued" for one in seen) else {}
        return json_response({"data": [self._shown(one, places) for one in seen]})

    async def show(self, request: Request, request_id: str) -> Response:
        """State, place in the queue, timings, and the answer when it is there."""
        record = await self._find(request, call_of(request), request_id)
        return json_response(self._whole(record, await self.gateway.places.look() if record.state == "queued" else {}))

    async def cancel(self, request: Request, request_id: str) -> Response:
        """Cancel it, waiting or running. Answers with what it became; one that has ended stays as it is."""
        record = await self._find(request, call_of(request), request_id)
        record = await cancelled(self.gateway, identify(self.gateway, request), record)
        return json_response(self._whole(record, {}))

    async def events(self, request: Request, request_id: str) -> Response:
        """The stream, from its start or after `Last-Event-ID`, from any gateway, also while it runs."""
        call = call_of(request)
        after = _position(request.headers.get("last-event-id"), request_id)
        record = await self._find(request, call, request_id)
        if is_head(request):
            return head_of_stream()
        caller = identify(self.gateway, request)
        permit = await self.gateway.admission.admit(caller, needs_worker=False)
        try:
            stream = await self.gateway.relay.attach(request_id, record, after)
            reader = self.gateway.relay.read(stream, after)
        except BaseException:
            permit.release()
            raise
        call.fields["model"] = record.job.model
        return NativeResponse(Opened(self.gateway, call, [reader], permit), is_stream=True, queue_events=None)

    async def take_up(self, request: Request) -> Response:
        """`events`, called by the request's path alone."""
        return await self.events(request, request.scope["path"][len(PATH) + 1 : -len(EVENTS_END)])

    async def _find(self, request: Request, call: Call, request_id: str) -> Record:
        record = await find(self.gateway, await authenticate(self.gateway, request, call), request_id)
        if record is None:
            raise RequestNotFound(f"Request not found; it may have expired ({KEPT}).", param="request_id")
        call.fields["subject"] = request_id
        return record

    def _shown(self, seen: JobSummary, places: dict[str, int]) -> dict[str, Any]:
        """`places`: of the requests that wait. The answer's text is not in it."""
        end = seen.end
        position = places.get(seen.id) if seen.state == "queued" else None
        wait_s = None if position is None else self.gateway.pool.wait_s(position)
        return {
            "request_id": seen.id,
            "model": seen.model,
            "state": _state(seen),
            "created_at": seen.created_at,
            "deadline_at": seen.deadline_at,
            "attempts": seen.num_claims,
            "position": position,
            "estimated_wait_s": None if wait_s is None else round(wait_s, 1),
            "timings": {
                "queue_ms": _ms(seen.created_at, seen.started_at),
                "ttft_ms": _ms(seen.created_at, seen.first_token_at),
                "total_ms": _ms(seen.created_at, seen.ended_at),
            },
            "usage": usage(end) if isinstance(end, Done) else None,
            "finish_reason": end.finish_reason if isinstance(end, Done) else None,
            "text": None,
            "error": end.error().envelope()["error"] if isinstance(end, Failed) else None,
            "metadata": seen.metadata,
            "user": seen.user or None,
        }

    def _whole(self, record: Record, places: dict[str, int]) -> dict[str, Any]:
        """With the answer, where it is complete."""
        shown, folded = self._shown(JobSummary.of(record), places), fold(record.events)
        if isinstance(folded.end, Done) and folded.end.finish_reason != "cancelled":
            whole = with_call_ids(join(folded.tokens), record.job.id)
            shown |= {"text": whole.text, **extra_fields(whole)}
        return shown


async def find(gateway: Gateway, caller: Caller, request_id: str) -> Record | None:
    """The caller's own request; for an administrator any caller's. It is read whole, and takes its turn.

    Raises `StoreUnavailable` where it is not there and may yet be given back.
    """
    if not JOB_ID.fullmatch(request_id):
        return None
    async with gateway.turns.of(caller.rate_key):
        record = await gateway.relay.look_up(request_id)
    is_admin = caller.key is not None and caller.key.admin
    return None if record is None or (record.job.caller != caller.id and not is_admin) else record


async def cancelled(gateway: Gateway, caller: Caller, record: Record) -> Record:
    """Cancel it, and wait a moment for its end. One that has ended stays as it is, and is not read again."""
    if record.state == "done":
        return record
    request_id = record.job.id
    await gateway.relay.cancel(request_id, "client")
    loop = asyncio.get_running_loop()
    until = loop.time() + CANCEL_WAIT_S
    seen = JobSummary.of(record)
    while seen.state != "done" and loop.time() < until:
        await asyncio.sleep(0.02)
        seen = (await gateway.operators.read_summary([request_id]))[0] or seen
    return await find(gateway, caller, request_id) or record


def _state(seen: JobSummary) -> RequestState:
    if isinstance(seen.end, Failed):
        return "failed"
    if isinstance(seen.end, Done):
        return "cancelled" if seen.end.finish_reason == "cancelled" else "completed"
    return "queued" if seen.state == "queued" else "running"


def _ms(start: float, end: float) -> float | None:
    return round((end - start) * 1000, 3) if end else None


def _position(last_event_id: str | None, request_id: str) -> int:
    """Number of tokens that the client has, from the `id:` of its last event."""
    if not last_event_id:
        return 0
    match = _POSITION.fullmatch(last_event_id)
    if match is None or match[1] != request_id:
        raise InvalidRequest("Last-Event-ID does not belong to this request.", param="Last-Event-ID")
    return int(match[3])
