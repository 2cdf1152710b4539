"""Whether a value is valid against a JSON Schema, in the keywords that `keywords.py` knows."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from penstock.backends.mock.schema.keywords import (
    MAX_DEPTH,
    TOO_DEEP,
    Root,
    Schema,
    Unwritable,
    count_of,
    dict_of,
    list_of,
    names_of,
    number_of,
    same,
    schema_of,
    target_of,
    text_of,
    types_of,
)
from penstock.backends.mock.schema.pattern import Pattern


def is_valid(value: Any, given: Any, root: Root, depth: int = 0) -> bool:
    """Raises `Unwritable` for a schema that cannot be read, or that takes too much work."""
    if given is False:
        return False
    schema = schema_of(given)
    root.visit(schema)
    if depth > MAX_DEPTH:
        raise Unwritable(TOO_DEEP)
    if "$ref" in schema and not is_valid(value, target_of(schema["$ref"], root.schema), root, depth + 1):
        return False
    return (
        _is_of_type(value, types_of(schema))
        and ("const" not in schema or same(value, schema["const"]))
        and ("enum" not in schema or any(same(value, each) for each in list_of(schema, "enum")))
        and _is_in_branches(value, schema, root, depth + 1)
        and _is_valid_by_type(value, schema, root, depth + 1)
    )


def type_of(value: Any) -> str:
    """The JSON type of a value; a whole number is an integer."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value == math.floor(value) else "number"
    return {int: "integer", str: "string", list: "array"}.get(type(value), "object")


def _is_of_type(value: Any, types: list[str]) -> bool:
    kind = type_of(value)
    return not types or kind in types or (kind == "integer" and "number" in types)


def _is_in_branches(value: Any, schema: Schema, root: Root, depth: int) -> bool:
    def holds(given: Any) -> bool:
        return is_valid(value, given, root, depth)

    if not all(holds(each) for each in list_of(schema, "allOf")):
        return False
    if "anyOf" in schema and not any(holds(each) for each in list_of(schema, "anyOf")):
        return False
    if "oneOf" in schema and sum(holds(each) for each in list_of(schema, "oneOf")) != 1:
        return False
    if "not" in schema and holds(schema["not"]):
        return False
    return "if" not in schema or holds(schema.get("then" if holds(schema["if"]) else "else", True))


def _is_valid_by_type(value: Any, schema: Schema, root: Root, depth: int) -> bool:
    if isinstance(value, str):
        return _is_valid_text(value, schema, root)
    if isinstance(value, list):
        return _is_valid_array(value, schema, root, depth)
    if isinstance(value, dict):
        return _is_valid_object(value, schema, root, depth)
    return value is None or isinstance(value, bool) or _is_valid_number(value, schema)


def _is_valid_text(value: str, schema: Schema, root: Root) -> bool:
    if not _is_between(len(value), count_of(schema, "minLength"), count_of(schema, "maxLength")):
        return False
    pattern = text_of(schema, "pattern")
    return pattern is None or Pattern(pattern).matches(value, root)


def _is_valid_number(value: float, schema: Schema) -> bool:
    above, below = number_of(schema, "exclusiveMinimum"), number_of(schema, "exclusiveMaximum")
    step = number_of(schema, "multipleOf")
    return (
        _is_between(value, number_of(schema, "minimum"), number_of(schema, "maximum"))
        and (above is None or value > above)
        and (below is None or value < below)
        and (step is None or step > 0)
        and (step is None or exact(value) % exact(step) == 0)
    )


def exact(number: float) -> Fraction:
    """A number as it is written: 0.1 is a tenth."""
    return Fraction(repr(number))


def _is_valid_array(value: list[Any], schema: Schema, root: Root, depth: int) -> bool:
    if not _is_between(len(value), count_of(schema, "minItems"), count_of(schema, "maxItems")):
        return False
    if schema.get("uniqueItems") is True:
        root.spend(len(value) ** 2 // 32)
        if any(same(one, other) for at, one in enumerate(value) for other in value[:at]):
            return False
    if "contains" in schema:
        num = sum(is_valid(each, schema["contains"], root, depth) for each in value)
        least = count_of(schema, "minContains")
        if not _is_between(num, 1 if least is None else least, count_of(schema, "maxContains")):
            return False
    return all(is_valid(each, item_of(schema, at), root, depth) for at, each in enumerate(value))


def item_of(schema: Schema, at: int) -> Any:
    """The schema of the item at a place; before 2020-12 `items` could be a list too."""
    first, rest = schema.get("prefixItems"), schema.get("items", True)
    if isinstance(rest, list):
        first, rest = rest, schema.get("additionalItems", True)
    first = first if isinstance(first, list) else []
    return first[at] if at < len(first) else rest


def _is_valid_object(value: dict[str, Any], schema: Schema, root: Root, depth: int) -> bool:
    if not _is_between(len(value), count_of(schema, "minProperties"), count_of(schema, "maxProperties")):
        return False
    if not all(name in value for name in needed(schema, value)):
        return False
    if "propertyNames" in schema and not all(is_valid(each, schema["propertyNames"], root, depth) for each in value):
        return False
    return all(
        is_valid(each, part, root, depth) for name, each in value.items() for part in parts_of(schema, name, root)
    )


def needed(schema: Schema, names: dict[str, Any]) -> list[str]:
    """The names of an object's properties that it must have, as it has those in `names`."""
    found = names_of(schema, "required")
    for name in dict_of(schema, "dependentRequired"):
        if name in names:
            found = found + names_of(dict_of(schema, "dependentRequired"), name)
    return found


def parts_of(schema: Schema, name: str, root: Root) -> list[Any]:
    """The schemas that the property `name` of an object must fulfil."""
    properties, patterns = dict_of(schema, "properties"), dict_of(schema, "patternProperties")
    found = [properties[name]] if name in properties else []
    found += [part for pattern, part in patterns.items() if Pattern(pattern).matches(name, root)]
    return found or [schema.get("additionalProperties", True)]


def _is_between(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)
