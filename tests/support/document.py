"""Answers of a gateway against its OpenAPI document: that each is as it is described, and that all of it was seen.

A described answer is closed here: a field that the document does not have is a fault, which a client would forgive.
What is seen are marks: `Name.field`, `Name.field|null` for one kind of a value that may be of several, `Name.field=x`
for one value of a closed list. An answer leaves its marks, and `unseen` names those that no answer has left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from penstock.sse import Decoder

Schema = dict[str, Any]


class Document:
    """`document`: as `/openapi.json` has it."""

    def __init__(self, document: Schema) -> None:
        self.whole = document
        self.schemas: dict[str, Schema] = document["components"]["schemas"]
        self._closed = {"schemas": {name: _closed(schema) for name, schema in self.schemas.items()}}
        self._validators: dict[str, jsonschema_rs.Validator] = {}
        self.seen: set[str] = set()
        self.asked: set[tuple[str, str, str]] = set()  # method, path, status
        self._paths = {path: re.compile(re.sub(r"{\w+}", "(.+)", path)) for path in document["paths"]}

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, method: str, path: str, status: int, content_type: str, body: bytes) -> None:
        """An answer as it came. Raises `AssertionError`."""
        template = self._template(path)
        documented = self.whole["paths"][template][method.lower()]["responses"].get(str(status))
        assert documented is not None, f"{method} {template} gives {status}, which is not documented: {body[:200]!r}"
        kind = content_type.partition(";")[0]
        assert kind in documented["content"], f"{method} {template} {status}: {kind}"
        schema = documented["content"][kind]["schema"]
        self.asked.add((method.lower(), template, str(status)))
        if kind == "text/event-stream":
            self.check_events(schema, body)
        elif kind == "application/x-ndjson":
            for line in body.splitlines():
                self.check_value(schema, json.loads(line))
        elif kind == "application/json":
            self.check_value(schema, json.loads(body))

    def check_events(self, schema: Schema, body: bytes) -> None:
        """Every event, of which `schema` describes the data."""
        events = [event for event in Decoder().feed(body) if event.data != "[DONE]"]
        assert events, "a stream without an event"
        for event in events:
            self.check_value(schema, json.loads(event.data))

    def check_value(self, schema: Schema, value: Any) -> None:
        faults = [f"{fault.message} at {fault.instance_path}" for fault in self._validator(schema).iter_errors(value)]
        assert not faults, (schema, faults, value)
        self.seen |= set(self._left_by(schema, value, ""))

    def _template(self, path: str) -> str:
        path = path.partition("?")[0]
        if path in self._paths:
            return path
        found = [one for one, pattern in self._paths.items() if pattern.fullmatch(path)]
        return str(max(found, key=len))

    def _validator(self, schema: Schema) -> jsonschema_rs.Validator:
        key = json.dumps(schema)
        if key not in self._validators:
            root = {"allOf": [_closed(schema)], "components": self._closed}
            self._validators[key] = jsonschema_rs.Draft202012Validator(root)
        return self._validators[key]

    # ── marks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def unseen(self) -> list[str]:
        """The marks that no answer has left."""
        return sorted(set(self.marks()) - self.seen)

    def marks(self) -> Iterator[str]:
        """Those of all answers."""
        known: set[str] = set()
        for _, _, _, documented in self.responses():
            for content in documented["content"].values():
                yield from self._marks(content["schema"], "", known)

    def responses(self) -> Iterator[tuple[str, str, str, Schema]]:
        """Method, path, status and description of every answer."""
        for path, operations in self.whole["paths"].items():
            for method, operation in operations.items():
                for status, documented in operation["responses"].items():
                    yield method, path, status, documented

    def _marks(self, schema: Schema, at: str, known: set[str]) -> Iterator[str]:
        if "$ref" in schema:
            name = _name(schema)
            if name not in known:
                known.add(name)
                yield from self._marks(self.schemas[name], name, known)
            return
        for branch in _branches(schema):
            yield f"{at}|{_title(branch)}"
            yield from self._marks(branch, at, known)
        for value in schema.get("enum", ()):
            yield f"{at}={value}"
        for name, child in schema.get("properties", {}).items():
            yield f"{at}.{name}"
            yield from self._marks(child, f"{at}.{name}", known)
        for child in _items(schema):
            yield from self._marks(child, at, known)

    def _left_by(self, schema: Schema, value: Any, at: str) -> Iterator[str]:
        if "$ref" in schema:
            name = _name(schema)
            yield from self._left_by(self.schemas[name], value, name)
            return
        for branch in _branches(schema):
            if self._validator(branch).is_valid(value):
                yield f"{at}|{_title(branch)}"
                yield from self._left_by(branch, value, at)
        if "enum" in schema:
            yield f"{at}={value}"
        if isinstance(value, dict):
            named = schema.get("properties", {})
            for name in value.keys() & named.keys():
                yield f"{at}.{name}"
                yield from self._left_by(named[name], value[name], f"{at}.{name}")
            rest = schema.get("additionalProperties")
            if isinstance(rest, dict):
                for name in value.keys() - named.keys():
                    yield from self._left_by(rest, value[name], at)
        if isinstance(value, list):
            places = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
            for place, item in zip(places, value, strict=True):
                yield from self._left_by(place, item, at)


def _name(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _branches(schema: Schema) -> list[Schema]:
    return [*schema.get("oneOf", ()), *schema.get("anyOf", ())]


def _items(schema: Schema) -> Iterator[Schema]:
    yield from schema.get("prefixItems", ())
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield schema[name]


def _title(schema: Schema) -> str:
    return _name(schema) if "$ref" in schema else str(schema.get("type") or schema.get("const"))


def _closed(schema: Any) -> Any:
    """The same with no field beyond those that are named."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
