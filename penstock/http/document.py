"""The OpenAPI document, made at its first use: FastAPI's own, and what it cannot see.

Our own code reads bodies and writes answers, so the types of both are added here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from msgspec import Struct
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from penstock.errors import IdempotencyConflict
from penstock.http.openapi import ANYWHERE, SCHEMAS, Documented, ErrorAnswer, Events, error_entry

Document = dict[str, Any]

_CONFLICT = str(IdempotencyConflict.status)
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The second request with a key attaches to the first one's.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class _Schemas(GenerateJsonSchema):
    """Without defaults and titles of fields. Generators of clients read a field with a default as one that is always
    there, which for a request's is a duty to give it, and for an answer's a promise that is not kept."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def describe(
    app: FastAPI,
    routers: Sequence[APIRouter],
    bodies: Mapping[tuple[str, str], type[BaseModel]],
    envelope_at: Callable[[str], type[BaseModel]] = lambda path: ErrorAnswer,
) -> None:
    """Complete the document of `app`, which has included `routers`, at its first use.

    `bodies`: the request bodies, by (path, method). `envelope_at`: the form of the errors at a path.
    """
    make = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            document = make()
            envelopes = {path: envelope_at(path) for path in document["paths"]}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _complete(operation, envelopes[path])
            for (path, method), body in bodies.items():
                content = {"application/json": {"schema": _ref(body)}}
                document["paths"][path][method]["requestBody"] = {"required": True, "content": content}
            _add_schemas(document, [*_documented(routers)], [*bodies.values(), *envelopes.values()])
            # Of the whole document, where "none" is one of them: an operation with its own would ask users of generated
            # clients for a key, also of a gateway without a keys file.
            document["components"]["securitySchemes"] = _KEYS
            document["security"] = [{}, *({name: []} for name in _KEYS)]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _complete(operation: Document, envelope: type[BaseModel]) -> None:
    """The errors of every route, each with its envelope, in the order of their status."""
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; ours are 400, in our envelope
    for error in ANYWHERE:
        status, code = str(error.status), f"`{error.code}`"
        entry = responses.setdefault(status, error_entry(error.status, []))
        codes = [one for one in entry["description"].split(", ") if one]
        entry["description"] = ", ".join(codes if code in codes else [*codes, code])
    for status, entry in responses.items():
        if int(status) >= 400:
            entry.setdefault("content", {"application/json": {"schema": _ref(envelope)}})
    operation["responses"] = dict(sorted(responses.items()))
    if _CONFLICT in responses:
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)


def _documented(routers: Sequence[APIRouter]) -> Iterator[Documented]:
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield from (one for one in route.responses.values() if isinstance(one, Documented))


def _add_schemas(document: Document, answers: list[Documented], others: list[type[BaseModel]]) -> None:
    """The schemas of all that `answers` refer to, and of `others`."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    streams = {one.events.name: one.events for one in answers if one.events is not None}
    kinds = dict.fromkeys(kind for one in answers for kind in one.kinds)
    kinds |= dict.fromkeys(kind for events in streams.values() for kind in events.kinds)
    models = dict.fromkeys([kind for kind in kinds if issubclass(kind, BaseModel)] + others)
    ours: Document = {}
    for made in (
        models_json_schema(
            [(model, "validation") for model in models], ref_template=SCHEMAS, schema_generator=_Schemas
        )[1]["$defs"],
        _of_structs([kind for kind in kinds if issubclass(kind, Struct)]),
        {name: _of_events(events) for name, events in streams.items()},
    ):
        for name, schema in made.items():
            if ours.setdefault(name, schema) != schema:
                raise ValueError(f"two types of the document are called {name}")
    document["components"]["schemas"] = dict(sorted((schemas | ours).items()))


def _of_structs(kinds: list[type[Struct]]) -> Document:
    """A struct is written with all its fields, those with a default too."""
    schemas = msgspec.json.schema_components(kinds, ref_template=SCHEMAS.format(model="{name}"))[1]
    for schema in schemas.values():
        if "properties" in schema:
            schema["required"] = list(schema["properties"])
            for field in schema["properties"].values():
                field.pop("default", None)
    return schemas


def _of_events(events: Events) -> Document:
    schema: Document = {"title": events.name, "oneOf": [_ref(kind) for kind in events.kinds]}
    if events.discriminator:
        mapping = {
            value: SCHEMAS.format(model=kind.__name__)
            for kind in events.kinds
            for value in _literals(kind, events.discriminator)
        }
        schema["discriminator"] = {"propertyName": events.discriminator, "mapping": mapping}
    return schema


def _literals(kind: type[BaseModel], field: str) -> tuple[str, ...]:
    values: tuple[str, ...] = getattr(kind.model_fields[field].annotation, "__args__", ())
    return values


def _ref(kind: type[BaseModel]) -> Document:
    return {"$ref": SCHEMAS.format(model=kind.__name__)}
