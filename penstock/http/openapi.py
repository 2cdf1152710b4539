"""The OpenAPI document: what FastAPI cannot see, as bodies are read and parsed by our own strict code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from msgspec import Struct
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from penstock import errors
from penstock.errors import PenstockError

_SCHEMAS = "#/components/schemas/{model}"


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    param: str | None


class ErrorAnswer(BaseModel):
    """The one envelope of every error."""

    error: ErrorDetail


def error_responses(*errors: type[PenstockError]) -> dict[int | str, dict[str, Any]]:
    """The documented failures of a route: one entry a status, with the codes that it may carry."""
    codes: dict[int, list[str]] = {}
    for error in errors:
        codes.setdefault(error.status, []).append(f"`{error.code}`")
    return {
        status: {"model": ErrorAnswer, "description": ", ".join(names)}
        | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
        for status, names in sorted(codes.items())
    }


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


# The error responses of a POST that submits a request.
SUBMIT_ERRORS = error_responses(
    errors.InvalidRequest,
    errors.UnsupportedParameter,
    errors.Unauthorized,
    errors.ModelNotAllowed,
    errors.ModelNotFound,
    errors.IdempotencyConflict,
    errors.SlowBody,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.Overloaded,
    errors.RateLimited,
    errors.QueueFull,
    errors.StorageQuota,
    errors.DeadlineUnreachable,
    errors.Cancelled,
    errors.InternalError,
    errors.BackendError,
    errors.WorkerLost,
    errors.NoWorkers,
    errors.StoreUnavailable,
    errors.Draining,
    errors.DeadlineExceeded,
)


def answer_of(kind: type[Struct]) -> dict[str, Any]:
    """The documented JSON answer of a route that writes a struct; `describe` gets it among its `answers`."""
    schema = {"$ref": _SCHEMAS.format(model=kind.__name__)}
    return {"description": inspect.cleandoc(kind.__doc__ or ""), "content": {"application/json": {"schema": schema}}}


def describe(
    app: FastAPI, bodies: Mapping[tuple[str, str], type[BaseModel]], answers: Sequence[type[Struct]] = ()
) -> None:
    """Add the request bodies, by (path, method), and the structs that routes answer with, to the document of `app`."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            for path in document["paths"].values():
                for operation in path.values():
                    operation.get("responses", {}).pop("422", None)  # FastAPI's own; ours are 400, in our envelope
            for name in ("HTTPValidationError", "ValidationError"):
                document.get("components", {}).get("schemas", {}).pop(name, None)
            wanted: list[tuple[type[BaseModel], Any]] = [(body, "validation") for body in bodies.values()]
            refs, definitions = models_json_schema(wanted, ref_template=_SCHEMAS)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions.get("$defs", {}))
            schemas.update(msgspec.json.schema_components(answers, ref_template="#/components/schemas/{name}")[1])
            for (path, method), body in bodies.items():
                content = {"application/json": {"schema": refs[(body, "validation")]}}
                document["paths"][path][method]["requestBody"] = {"required": True, "content": content}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
