"""The parts of a JSON Schema, which a client wrote and which may be anything: typed look-ups, references, joining.

Drafts 6 to 2020-12 in the parts that engines and frameworks use. Everything that cannot be read is an `Unwritable`.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar
from urllib.parse import unquote

UNKNOWN = ("unevaluatedProperties", "unevaluatedItems", "dependentSchemas", "$dynamicRef", "$recursiveRef")
SIZE_OF_STEP = 32  # characters of a value that count as one step of work
TOO_DEEP = "it is too deep, or contains itself"
MAX_DEPTH = 48  # of schemas in one another

MAX_NUMBER = 10.0**300
_BRANCHES = ("then", "else")

Schema = dict[str, Any]
T = TypeVar("T")


class Unwritable(Exception):
    """No value is known for this schema; its message is for the client that sent it."""


def schema_of(given: Any) -> Schema:
    """`given` as a dict; true is {}. Raises `Unwritable` for false and for what is not a schema."""
    if given is True:
        return {}
    if given is False:
        raise Unwritable("false allows no value")
    if not isinstance(given, dict):
        raise Unwritable("a schema must be an object")
    for name in UNKNOWN:
        if name in given:
            raise Unwritable(f"{name!r} is not supported")
    return given


def dict_of(schema: Schema, name: str) -> dict[str, Any]:
    return _typed(schema, name, dict) or {}


def list_of(schema: Schema, name: str) -> list[Any]:
    return _typed(schema, name, list) or []


def names_of(schema: Schema, name: str) -> list[str]:
    found = list_of(schema, name)
    if not all(isinstance(each, str) for each in found):
        raise Unwritable(f"{name!r} must hold strings")
    return found


def text_of(schema: Schema, name: str) -> str | None:
    return _typed(schema, name, str)


def count_of(schema: Schema, name: str) -> int | None:
    """A count, such as `minItems`; 3.0 is 3."""
    number = number_of(schema, name)
    if number is None:
        return None
    if number < 0 or number != int(number):
        raise Unwritable(f"{name!r} must be a count")
    return int(number)


def number_of(schema: Schema, name: str) -> int | float | None:
    number = schema.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not -MAX_NUMBER < number < MAX_NUMBER:
        raise Unwritable(f"{name!r} must be a number")
    return number


def types_of(schema: Schema) -> list[str]:
    """The types that `type` allows; [] where it is absent."""
    kind = schema.get("type")
    return [kind] if isinstance(kind, str) else names_of(schema, "type")


def _typed(schema: Schema, name: str, kind: type[T]) -> T | None:
    value = schema.get(name)
    if value is not None and not isinstance(value, kind):
        raise Unwritable(f"{name!r} has the wrong type")
    return value


def target_of(reference: Any, root: Any) -> Any:
    """The schema to which a `$ref` inside `root` leads."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise Unwritable("'$ref' must begin with '#/'")
    here = root
    for step in unquote(reference[2:]).split("/") if reference != "#" else ():
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and step.isdecimal() and step.isascii() and len(step) < 6 and int(step) < len(here):
            here = here[int(step)]
        else:
            raise Unwritable(f"{reference[:80]!r} is not in the schema")
    return here


class Root:
    """The whole schema, to which references lead, and the work that may still be spent on it.

    The limit is for schemas that are small and mean a large value, or none, such as those that contain themselves.
    """

    def __init__(self, schema: Any, max_steps: int = 8_000) -> None:
        self.schema = schema
        self.max_steps = max_steps
        self.num_steps = 0

    def spend(self, num: int = 1) -> None:
        self.num_steps += num
        if self.is_spent:
            raise Unwritable("its values are too large, or it contains itself too often")

    @property
    def is_spent(self) -> bool:
        """No work is left: another branch is not worth a try."""
        return self.num_steps > self.max_steps

    def visit(self, schema: Schema) -> None:
        """Count the work that looking at the keywords of a schema takes."""
        sizes = [len(value) for value in schema.values() if isinstance(value, dict | list)]
        self.spend(1 + (len(schema) + sum(sizes)) // SIZE_OF_STEP)

    def flat(self, given: Any, depth: int = 0) -> Schema:
        """One schema for `given`: with its `$ref` and its `allOf` joined into it."""
        schema = schema_of(given)
        while "$ref" in schema or "allOf" in schema:
            self.spend()
            if depth > MAX_DEPTH:
                raise Unwritable("'$ref' leads to itself")
            depth += 1
            if "$ref" in schema:
                rest = {name: value for name, value in schema.items() if name != "$ref"}
                schema = self.joined(schema_of(target_of(schema["$ref"], self.schema)), rest)
            else:
                parts = list_of(schema, "allOf")
                schema = {name: value for name, value in schema.items() if name != "allOf"}
                for part in parts:
                    schema = self.joined(schema, self.flat(part, depth))
        return schema

    def joined(self, one: Schema, other: Schema) -> Schema:
        """A schema for what both allow."""
        for name in (name for name in one if name in other):
            sizes = [len(each[name]) for each in (one, other) if isinstance(each[name], dict | list)]
            self.spend((math.prod(sizes) if name in ("enum", "type") else sum(sizes)) // SIZE_OF_STEP)
        return _joined(one, other)


def _joined(one: Schema, other: Schema) -> Schema:
    """Where two keywords cannot be joined the first stays: the check will decide."""
    both = {**other, **one}
    more: list[Schema] = []
    for name in (name for name in one if name in other):
        mine, its = one[name], other[name]
        if name in ("properties", "patternProperties", "$defs", "definitions"):
            mine, its = dict_of(one, name), dict_of(other, name)
            shared = {key: {"allOf": [mine[key], its[key]]} for key in mine if key in its and mine[key] != its[key]}
            both[name] = {**mine, **its, **shared}
        elif name == "required":
            both[name] = list(dict.fromkeys(names_of(one, name) + names_of(other, name)))
        elif name == "enum":
            both[name] = [each for each in list_of(one, name) if any(same(each, it) for it in list_of(other, name))]
        elif name == "type":
            both[name] = _common(types_of(one), types_of(other))
        elif name.startswith(("min", "exclusiveMin")):
            both[name] = max(number_of(one, name) or 0, number_of(other, name) or 0)
        elif name.startswith(("max", "exclusiveMax")):
            both[name] = min(number_of(one, name) or 0, number_of(other, name) or 0)
        elif name in ("items", "additionalProperties", "propertyNames", "contains") and mine != its:
            both[name] = {"allOf": [mine, its]}
        elif name == "allOf":
            both[name] = [*list_of(one, name), *list_of(other, name)]
        elif name in ("$ref", "anyOf", "oneOf", "not", "if") and mine != its:
            more.append({each: other[each] for each in other if each == name or (name == "if" and each in _BRANCHES)})
    if more:
        both["allOf"] = [*list_of(both, "allOf"), *more]
    return both


def _common(one: list[str], other: list[str]) -> list[str]:
    """The types in both lists; an integer is a number too."""
    wide = {name for names in (one, other) for name in names if name == "number"}
    found = [name for name in one if name in other]
    if wide:
        found += [name for name in {*one, *other} if name == "integer" and name not in found and _in_both(one, other)]
    if not found:
        raise Unwritable("no type is left")
    return found


def _in_both(one: list[str], other: list[str]) -> bool:
    return all("integer" in names or "number" in names for names in (one, other))


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON: 1 is 1.0, and true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def shown(value: Any) -> str:
    """The text of a JSON value."""
    return json.dumps(value, ensure_ascii=False)
