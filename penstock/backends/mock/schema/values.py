"""Values that are valid against a JSON Schema: the mock's structured answers, and the arguments of its tool calls.

A value is written from the schema's keywords and then checked against the whole of it, so a schema that cannot be
fulfilled, or that is not understood, gives `Unwritable` and never a wrong value. Optional properties are written too,
except deep inside: so schemas that contain themselves come to an end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from penstock.backends.mock.schema.check import is_valid, item_of, needed, parts_of
from penstock.backends.mock.schema.draw import Draw
from penstock.backends.mock.schema.formats import noun
from penstock.backends.mock.schema.keywords import (
    MAX_DEPTH,
    SIZE_OF_STEP,
    TOO_DEEP,
    Root,
    Schema,
    Unwritable,
    count_of,
    dict_of,
    list_of,
    same,
    schema_of,
    shown,
    types_of,
)
from penstock.backends.mock.schema.pattern import Pattern
from penstock.backends.mock.schema.plain import LIMITS, number_for, text_for

_TRIES = 4  # of a whole value
_LEAN_DEPTH = 6  # from here on optional parts are left out
_LEAN_STEPS = 600  # spent: likewise

TYPES = ("string", "integer", "boolean", "object", "array", "number", "null")
# Which type a schema without `type` describes, by its other keywords.
_KEYWORDS = {
    "object": (
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
        "maxProperties", "dependentRequired",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": LIMITS,
}  # fmt: skip


def value_for(schema: Any, key: int) -> Any:
    """A value that is valid against `schema`: the same for the same key. Raises `Unwritable` if none is found."""
    root = Root(schema)
    try:
        for number in range(_TRIES):
            value = _Writer(root, Draw(key + number)).value(schema)
            if is_valid(value, schema, root):
                return value
    except RecursionError:
        raise Unwritable(TOO_DEEP) from None
    raise Unwritable("no value is found that fulfils all of it")


class _Writer:
    def __init__(self, root: Root, draw: Draw) -> None:
        self._root = root
        self._draw = draw

    def value(self, given: Any, depth: int = 0) -> Any:
        """A value for a schema, `depth` schemas below the top."""
        if depth > MAX_DEPTH:
            raise Unwritable(TOO_DEEP)
        schema = self._root.flat(given)
        self._root.visit(schema)
        if "const" in schema or "enum" in schema:
            return self._given(schema)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._of_branch(schema, name, depth)
        if "if" in schema:
            return self._of_condition(schema, depth)
        return self._of_type(schema, self._type(schema), depth)

    def _is_lean(self, depth: int) -> bool:
        return depth >= _LEAN_DEPTH or self._root.num_steps > _LEAN_STEPS

    def _given(self, schema: Schema) -> Any:
        """One of the values that the schema contains."""
        values = [schema["const"]] if "const" in schema else list_of(schema, "enum")
        rest = {key: value for key, value in schema.items() if key not in ("const", "enum")}
        for index in self._draw.ordered(len(values)):
            if is_valid(values[index], rest, self._root):
                self._root.spend(len(shown(values[index])) // SIZE_OF_STEP)
                return values[index]
        raise Unwritable("'enum' and 'const' have no value that fulfils the rest")

    def _of_branch(self, schema: Schema, name: str, depth: int) -> Any:
        """A value of one of the branches, which come in a drawn order; deep inside, the simple ones first."""
        rest = {key: value for key, value in schema.items() if key != name}
        branches = list_of(schema, name)
        order = self._draw.ordered(len(branches))
        if self._is_lean(depth):
            order.sort(key=lambda index: _weight(branches[index]))
        why = f"{name!r} has no value"
        for index in order:
            try:
                value = self.value(self._root.joined(self._root.flat(branches[index]), rest), depth + 1)
            except Unwritable as error:
                if self._root.is_spent:
                    raise
                why = str(error)  # the error itself would refer to this frame: see "No cycles"
                continue
            if is_valid(value, schema, self._root):
                return value
        raise Unwritable(why)

    def _of_condition(self, schema: Schema, depth: int) -> Any:
        rest = {key: value for key, value in schema.items() if key not in ("if", "then", "else")}
        for branch in ({"allOf": [schema["if"], schema.get("then", True)]}, schema.get("else", True)):
            try:
                value = self.value(self._root.joined(self._root.flat(branch), rest), depth + 1)
            except Unwritable:
                if self._root.is_spent:
                    raise
                continue
            if is_valid(value, schema, self._root):
                return value
        raise Unwritable("no value is found for 'if'")

    def _type(self, schema: Schema) -> str:
        types = types_of(schema)
        if not types:
            likely = (kind for kind, names in _KEYWORDS.items() if any(name in schema for name in names))
            types = [*TYPES] if "not" in schema else [next(likely, "string")]
        if len(types) > 1 and "null" in types:
            types = [kind for kind in types if kind != "null"] * 3 + ["null"]
        return types[self._draw.below(len(types))]

    def _of_type(self, schema: Schema, kind: str, depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return text_for(schema, self._draw, self._root)
        if kind in ("integer", "number"):
            return number_for(schema, self._draw, self._root, is_whole=kind == "integer")
        if kind == "boolean":
            return bool(self._draw.below(2))
        if kind == "null":
            return None
        raise Unwritable(f"the type {kind[:80]!r} is not known")

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties = dict_of(schema, "properties")
        required = dict.fromkeys(needed(schema, {}))
        most = count_of(schema, "maxProperties")
        room = math.inf if most is None else most - len(required)
        value: dict[str, Any] = {}
        for name in dict.fromkeys((*properties, *required)):
            if name not in required and (room <= 0 or self._is_lean(depth)):
                continue
            try:
                value[name] = self._property(schema, name, depth)
            except Unwritable:
                if name in required or self._root.is_spent:
                    raise
                continue
            room -= name not in required
        for name in needed(schema, value):
            if name not in value:
                value[name] = self._property(schema, name, depth)
        for name in self._more_names(schema, value, depth):
            value[name] = self._property(schema, name, depth)
        return value

    def _property(self, schema: Schema, name: str, depth: int) -> Any:
        self._root.spend(len(name) // SIZE_OF_STEP)
        parts = parts_of(schema, name, self._root)
        return self.value(parts[0] if len(parts) == 1 else {"allOf": parts}, depth + 1)

    def _more_names(self, schema: Schema, value: dict[str, Any], depth: int) -> Iterator[str]:
        """Names of properties without a schema of their own: as many as there must be; of a pure map, two."""
        least, most = count_of(schema, "minProperties") or 0, count_of(schema, "maxProperties")
        rest = schema.get("additionalProperties")
        if isinstance(rest, dict) and not value and not self._is_lean(depth):
            least = max(least, 2 if most is None else min(2, most))
        patterns = list(dict_of(schema, "patternProperties"))
        self._root.spend(least)
        for _ in range(20 * least):
            if len(value) >= least:
                return
            if "propertyNames" in schema:
                name = self.value(
                    self._root.joined({"type": "string"}, self._root.flat(schema["propertyNames"])), depth + 1
                )
            elif rest is False and patterns:
                name = self._name_like(patterns[0], value)
            else:
                name = noun(self._draw)
            if isinstance(name, str) and name not in value:
                yield name
        if len(value) < least:
            raise Unwritable("'minProperties' asks for more properties than are found")

    def _name_like(self, pattern: str, others: dict[str, Any]) -> str:
        known, root = Pattern(pattern), self._root
        return known.written(self._draw, root, lambda text: text not in others and known.matches(text, root))

    def _array(self, schema: Schema, depth: int) -> list[Any]:
        first = schema["items"] if isinstance(schema.get("items"), list) else list_of(schema, "prefixItems")
        least, most = count_of(schema, "minItems") or 0, count_of(schema, "maxItems")
        num = max(least, len(first))
        if not first and not self._is_lean(depth):
            num = max(least, 1) + self._draw.below(3)
        num = num if most is None else min(num, most)
        self._root.spend(num)
        wanted = self._contained(schema)
        value: list[Any] = []
        for at in range(max(num, wanted)):
            item = item_of(schema, at)
            try:
                part = {"allOf": [item, schema["contains"]]} if at < wanted else item
                value.append(self._item(part, value, schema.get("uniqueItems") is True, depth))
            except Unwritable:
                if len(value) < least or at < wanted or self._root.is_spent:
                    raise
                break
        return value

    def _contained(self, schema: Schema) -> int:
        """How many items must fulfil `contains`."""
        if "contains" not in schema:
            return 0
        least = count_of(schema, "minContains")
        self._root.spend(least or 1)
        return 1 if least is None else least

    def _item(self, schema: Any, others: list[Any], is_unique: bool, depth: int) -> Any:
        for _ in range(50 if is_unique else 1):
            value = self.value(schema, depth + 1)
            if not is_unique or not any(same(value, other) for other in others):
                return value
        raise Unwritable("'uniqueItems' asks for more values than are found")


def _weight(branch: Any) -> int:
    """How likely a branch is to contain others: plain values first, then objects and arrays, then references."""
    schema = schema_of(branch) if branch is not False else {"$ref": "#"}
    if "const" in schema or "enum" in schema:
        return 0
    if "$ref" in schema or "anyOf" in schema or "oneOf" in schema or "allOf" in schema:
        return 3
    return 2 if {"object", "array"} & set(types_of(schema)) or "properties" in schema else 1
