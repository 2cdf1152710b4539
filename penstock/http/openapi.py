"""What a route declares of its answers for the OpenAPI document: their types, the events of a stream, and its errors.

Nothing here runs when a request is answered: answers are encoded by hand, and `tests/unit/api/test_openapi.py` holds
them to what is declared. Knows no route.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from penstock import errors
from penstock.errors import PenstockError

SCHEMAS = "#/components/schemas/{model}"


OPTIONAL: Any = Field(None)  # the default of a field of an answer that may be absent


class AnswerModel(BaseModel):
    """A JSON object of an answer. A field with a default (`OPTIONAL`) may be absent; any other is always there."""

    # Its schema is made at the first look at the document, and not while a gateway starts.
    model_config = ConfigDict(defer_build=True)


Kind = type[BaseModel] | type[Struct]
Failures = tuple[type[PenstockError], ...]


@dataclass(frozen=True, slots=True)
class Events:
    """A stream: the data of each of its events, or each of its lines, is one of `kinds`.

    `name`: of their union in the document. `discriminator`: the field whose value names the kind; empty where there is
    none.
    """

    name: str
    kinds: tuple[type[BaseModel], ...]
    discriminator: str = ""
    example: str = ""
    media_type: str = "text/event-stream"

    @property
    def content(self) -> dict[str, Any]:
        """OpenAPI 3.1 has no form for the items of a stream. By the convention that OpenAI's own document follows, and
        that generators of clients understand, the schema is that of one event's data."""
        schema = {"schema": {"$ref": SCHEMAS.format(model=self.name)}}
        return {self.media_type: schema | ({"example": self.example} if self.example else {})}


class Documented(dict[str, Any]):
    """A response in the form of the document, with what its schemas refer to."""

    def __init__(self, fields: dict[str, Any], kinds: tuple[Kind, ...] = (), events: Events | None = None) -> None:
        super().__init__(fields)
        self.kinds = kinds
        self.events = events


def answer_of(whole: Kind | None = None, events: Events | None = None, about: str = "") -> Documented:
    """An answer that is a JSON object, a stream, or, as the request asks, either. `about`: default: the type's own."""
    content: dict[str, Any] = {}
    kinds: tuple[Kind, ...] = ()
    if whole is not None:
        content["application/json"] = {"schema": {"$ref": SCHEMAS.format(model=whole.__name__)}}
        kinds = (whole,)
    if events is not None:
        content |= events.content  # behind the other: generators take the first form that they know
    about = about or inspect.cleandoc((whole.__doc__ if whole is not None else "") or "")
    return Documented({"description": about, "content": content}, kinds, events)


def add_route(
    router: APIRouter,
    method: str,
    path: str,
    route: Callable[..., Awaitable[Response]],
    name: str,
    answer: Documented,
    failures: Failures = (),
    **more: Any,
) -> None:
    """Add `route`, which writes its answers itself, to `router`, with its place in the document.

    `name`: the operation's id, by which generated clients call it, so that it does not change. `more`: of FastAPI's
    own arguments; `responses` for answers with another status than 200.
    """
    responses = {200: answer, **more.pop("responses", {}), **error_responses(*failures)}
    router.add_api_route(
        path,
        route,
        methods=[method],
        operation_id=name,
        response_model=None,
        response_class=Response,  # with another one FastAPI adds an answer without a schema
        responses=responses,
        **more,
    )


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────


class ErrorDetail(AnswerModel):
    """`param`: the name of the field at fault. `code` is one of the table of errors; a newer gateway may have more."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorAnswer(AnswerModel):
    """The one envelope of every error."""

    error: ErrorDetail


def error_responses(*kinds: type[PenstockError]) -> dict[int | str, dict[str, Any]]:
    """The documented failures of a route: one entry a status, with the codes that it may carry.

    `describe` adds the envelope, and the errors that every route may give.
    """
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        named = codes.setdefault(kind.status, [])
        if kind.code not in named:
            named.append(kind.code)
    return {status: error_entry(status, named) for status, named in sorted(codes.items())}


def error_entry(status: int, codes: Iterable[str]) -> dict[str, Any]:
    described = {"description": ", ".join(f"`{code}`" for code in codes)}
    return described | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def _header(description: str, kind: str) -> dict[str, Any]:
    return {"description": description, "required": True, "schema": {"type": kind}}


_RETRY = {
    "Retry-After": _header("Seconds after which a retry makes sense.", "integer"),
    "retry-after-ms": _header("The same in milliseconds.", "integer"),
}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": _header('`Bearer realm="penstock"`', "string")},
    429: _RETRY,
    503: _RETRY,
}

# What any route may give: before it is called, because of its query, or by a bug.
ANYWHERE: Failures = (
    errors.InvalidRequest,
    errors.OriginNotAllowed,
    errors.Misdirected,
    errors.InternalError,
    errors.Unavailable,
)

# How a request that was submitted may fail.
RUN_FAILURES: Failures = (
    errors.InvalidRequest,
    errors.ContextLengthExceeded,
    errors.Overloaded,
    errors.Cancelled,
    errors.InternalError,
    errors.RequestPoisoned,
    errors.BackendError,
    errors.WorkerLost,
    errors.NoWorkers,
    errors.StoreUnavailable,
    errors.DeadlineExceeded,
)

# What a POST that submits a request may give.
SUBMIT_FAILURES: Failures = (
    errors.UnsupportedParameter,
    errors.Unauthorized,
    errors.ModelNotAllowed,
    errors.ModelNotFound,
    errors.IdempotencyConflict,
    errors.SlowBody,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.RateLimited,
    errors.QueueFull,
    errors.StorageQuota,
    errors.DeadlineUnreachable,
    errors.Draining,
    *RUN_FAILURES,
)
SUBMIT_ERRORS = error_responses(*SUBMIT_FAILURES)
