"""What a stored response was asked, and its deletion. Any gateway answers, to the caller that created it."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from penstock import errors
from penstock.api.callers import authenticate
from penstock.api.dialects import OPENAI, begin
from penstock.api.requests import KEPT, cancelled, find
from penstock.api.responses.body import PREFIX, notes_of, request_id_of
from penstock.api.responses.chain import asked
from penstock.api.responses.listing import listed
from penstock.api.responses.stored_answers import DeletedResponse, ResponseInputItemList
from penstock.errors import InvalidRequest, RequestNotFound, Unavailable
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.json_response import json_response
from penstock.http.openapi import add_route, answer_of
from penstock.transports.base import Record

ONE = "/v1/responses/{response_id}"
INPUT_ITEMS = ONE + "/input_items"
MAX_LISTED = 100

_QUERY = frozenset(("after", "include", "include[]", "limit", "order"))
# Parts of items that other servers leave out unless they are asked for; here they are always there, or never.
_INCLUDES = frozenset(
    (
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    )
)


class StoredResponsesAPI:
    """See the head of this file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def router(self) -> APIRouter:
        router = APIRouter(tags=["responses"])
        add = partial(add_route, router)
        of_one = (errors.Unauthorized, errors.RequestNotFound, errors.RateLimited, errors.StoreUnavailable)
        items = answer_of(ResponseInputItemList)
        add("DELETE", ONE, self.delete, "responses_delete", answer_of(DeletedResponse), of_one)
        add("GET", INPUT_ITEMS, self.input_items, "responses_input_items_list", items, of_one)
        return router

    async def delete(self, request: Request, response_id: str) -> Response:
        """Delete it. One that waits or runs is cancelled first."""
        call = begin(request, ONE, OPENAI)
        gateway, caller = self.gateway, await authenticate(self.gateway, request, call)
        record = await find_stored(gateway, caller, response_id, "response_id")
        call.fields["subject"] = record.job.id
        await cancelled(gateway, caller, record)
        if not await gateway.relay.delete(record.job):
            message = "The response is being cancelled and has not ended yet: delete it again in a moment."
            raise Unavailable(message, param="response_id", retry_after_s=1.0)
        return json_response({"id": PREFIX + record.job.id, "object": "response", "deleted": True})

    async def input_items(
        self,
        request: Request,
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        """All that the model was given except the instructions, as items, the newest first or the oldest."""
        call = begin(request, INPUT_ITEMS, OPENAI)
        caller = await authenticate(self.gateway, request, call)
        _check_query(request)
        record = await find_stored(self.gateway, caller, response_id, "response_id")
        call.fields["subject"] = record.job.id
        items = listed(record.job.id, await asked(self.gateway, caller, record))
        if order == "desc":
            items.reverse()
        ids = [item["id"] for item in items]
        if after is not None and after not in ids:
            raise InvalidRequest("'after' is not the id of an item of this response.", param="after")
        first = 0 if after is None else ids.index(after) + 1
        shown = items[first : first + limit]
        ends = (
            {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
        )
        return json_response({"object": "list", "data": shown, **ends, "has_more": first + limit < len(items)})


async def find_stored(gateway: Gateway, caller: Caller, response_id: str, param: str) -> Record:
    """The caller's own stored response; for an administrator any caller's. Raises `RequestNotFound`."""
    request_id = request_id_of(response_id)
    record = None if request_id is None else await find(gateway, caller, request_id)
    notes = None if record is None else notes_of(record.job)
    if record is None or notes is None or not notes.store:
        raise RequestNotFound(f"Response not found; it may have expired ({KEPT}).", param=param)
    return record


def _check_query(request: Request) -> None:
    for name, value in request.query_params.multi_items():
        if name not in _QUERY:
            known = ", ".join(sorted(_QUERY - {"include[]"}))
            raise InvalidRequest(f"Unknown query parameter; there are {known}.", param=name[:64])
        if name.startswith("include") and value not in _INCLUDES:
            raise InvalidRequest(f"'include' must be one of {', '.join(sorted(_INCLUDES))}.", param="include")
