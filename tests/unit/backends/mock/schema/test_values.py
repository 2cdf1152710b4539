"""Values for JSON Schemas, judged by another implementation of JSON Schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.mock.schema.check import is_valid
from penstock.backends.mock.schema.formats import FORMATS
from penstock.backends.mock.schema.keywords import Root, Unwritable
from penstock.backends.mock.schema.values import value_for

# As frameworks write them: pydantic, zod, OpenAI's strict mode.
KNOWN: dict[str, Any] = {
    "nested": {
        "type": "object",
        "properties": {
            "steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}, "minItems": 2},
            "unit": {"enum": ["C", "F"]},
            "days": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "null"}]},
        },
        "required": ["steps", "unit", "days"],
        "additionalProperties": False,
        "$defs": {
            "Step": {
                "type": "object",
                "properties": {"why": {"type": "string"}, "kind": {"const": "step"}},
                "required": ["why", "kind"],
                "additionalProperties": False,
            }
        },
    },
    "a tree": {
        "$ref": "#/definitions/Node",
        "definitions": {
            "Node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/definitions/Node"}, {"type": "null"}]},
                    "others": {"type": "array", "items": {"$ref": "#/definitions/Node"}},
                },
                "required": ["name", "next", "others"],
            }
        },
    },
    "a list with an end": {
        "oneOf": [
            {"type": "object", "properties": {"rest": {"$ref": "#"}}, "required": ["rest"]},
            {"type": "null"},
        ]
    },
    "kinds": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "number"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"type": "boolean"}}, "required": ["kind"]},
        ]
    },
    "inherited": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 5}, "b": {"type": "string", "minLength": 3}}, "required": ["b"]},
        ]
    },
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3},
    "named keys": {"type": "object", "propertyNames": {"pattern": "^k[0-9]{2}$"}, "minProperties": 2},
    "keys by pattern": {
        "type": "object", "patternProperties": {"^x_": {"type": "integer"}},
        "additionalProperties": False, "minProperties": 2,
    },
    "keys that need others": {
        "type": "object", "properties": {"card": {"type": "integer"}}, "required": ["card"],
        "dependentRequired": {"card": ["address"]},
    },
    "a tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    "a tuple of old": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array", "items": [{"type": "string"}, {"type": "null"}], "additionalItems": False,
    },
    "a set": {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
    "contains": {"type": "array", "items": {"type": "integer"}, "contains": {"minimum": 90, "maximum": 95}},
    "several types": {"type": ["integer", "string", "null"], "minLength": 2, "minimum": 3},
    "an exclusive number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
    "a longer text for a pattern": {"type": "string", "pattern": "[0-9]", "minLength": 50},
    "a multiple": {"type": "integer", "multipleOf": 7, "minimum": 100},
    "a small multiple": {"type": "number", "multipleOf": 0.01, "minimum": 1.001},
    "a condition": {
        "type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "string"}}, "required": ["a"],
        "if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}, "else": {"required": ["c"]},
    },
    "not": {"type": "integer", "minimum": 0, "maximum": 1, "not": {"const": 0}},
    "a wide tree": {"type": "object", "properties": {name: {"$ref": "#"} for name in "abcdefghij"}},
    "anything": True,
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_schemas_of_frameworks(name: str) -> None:
    for key in range(40):
        value = value_for(KNOWN[name], key)
        assert jsonschema_rs.is_valid(KNOWN[name], value), value


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    schema = {"type": "string", "format": name}
    judge = jsonschema_rs.validator_for(schema, validate_formats=True)
    for key in range(50):
        assert judge.is_valid(value_for(schema, key)), value_for(schema, key)


small = st.integers(0, 5)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


plain = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.just({}),
    _some(minLength=small, maxLength=small).map(lambda it: {"type": "string", **it}),
    st.sampled_from(["^a{2,4}$", r"^\d{3}-[a-f]+$", "x", "^(yes|no)$"]).map(
        lambda it: {"type": "string", "pattern": it}
    ),
    _some(minimum=small, maximum=st.integers(3, 9), multipleOf=st.integers(1, 3)).map(
        lambda it: {"type": "integer", **it}
    ),
    _some(exclusiveMinimum=small, maximum=st.integers(6, 9), multipleOf=st.just(0.25)).map(
        lambda it: {"type": "number", **it}
    ),
    st.lists(st.sampled_from([1, "a", None, True, 2.5, [1]]), min_size=1, max_size=3).map(lambda it: {"enum": it}),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from("abc")
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(names, inner, max_size=3)},
        optional={
            "required": st.lists(names, unique=True, max_size=2),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "minProperties": small,
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array"), "items": inner},
        optional={"minItems": small, "maxItems": small, "uniqueItems": st.booleans(), "contains": inner},
    )
    several = st.lists(inner, min_size=1, max_size=3)
    joints = st.dictionaries(st.sampled_from(["anyOf", "oneOf", "allOf"]), several, min_size=1, max_size=2)
    return st.one_of(objects, arrays, joints, st.tuples(inner, objects).map(lambda two: {**two[0], "not": two[1]}))


schemas = st.recursive(plain, _nested, max_leaves=8)


@given(schemas, st.integers(0, 2**64 - 1))
def test_a_value_is_valid_or_there_is_none(schema: Any, key: int) -> None:
    try:
        value = value_for(schema, key)
    except Unwritable:
        return
    assert jsonschema_rs.is_valid(schema, json.loads(json.dumps(value)))
    assert value_for(schema, key) == value


objects = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=4).map(
            lambda it: {"type": "object", "properties": it, "required": list(it), "additionalProperties": False}
        ),
        st.tuples(inner, st.integers(0, 3)).map(lambda it: {"type": "array", "items": it[0], "minItems": it[1]}),
        st.lists(inner, min_size=1, max_size=3).map(lambda it: {"anyOf": it}),
    ),
    max_leaves=10,
)


def _is_possible(schema: Any) -> bool:
    """Whether no limits of it contradict each other."""
    if isinstance(schema, list):
        return all(map(_is_possible, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("minLength", 0) > schema.get("maxLength", 99) or "minimum" in schema or "exclusiveMinimum" in schema:
        return False
    return all(map(_is_possible, schema.values()))


@given(objects.filter(_is_possible), st.integers(0, 2**64 - 1))
def test_what_strict_mode_allows_is_always_written(schema: Any, key: int) -> None:
    assert jsonschema_rs.is_valid(schema, value_for(schema, key))


_NAMES = (
    "type properties required items enum anyOf oneOf allOf not $ref const if pattern format minItems minLength minimum "
    "multipleOf uniqueItems prefixItems contains minProperties propertyNames additionalProperties patternProperties a"
)
leaves = st.none() | st.booleans() | st.integers(-3, 99) | st.floats(-9, 9) | st.text(max_size=4)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES.split()), inner, max_size=4),
    max_leaves=12,
)


@given(anything)
def test_nonsense_is_refused_or_answered_but_breaks_nothing(schema: Any) -> None:
    try:
        value = value_for(schema, 1)
    except Unwritable:
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == value


values = st.recursive(
    st.none() | st.booleans() | small | st.sampled_from(["a", "aa", 0.25, 2.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(schemas, values)
def test_the_check_agrees_with_another_one(schema: Any, value: Any) -> None:
    assert is_valid(value, schema, Root(schema)) == jsonschema_rs.is_valid(schema, value)


def _wide(depth: int) -> Any:
    return {"anyOf": [_wide(depth - 1)] * 2} if depth else {"type": "string", "minLength": 5, "maxLength": 4}


def _often(schema: Any) -> Any:
    """So many of them that without a limit it would take minutes, or gigabytes."""
    return {"type": "array", "items": schema, "minItems": 3000}


def _deep(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (False, "false"),
        ({"$ref": "#"}, "itself"),
        ({"$ref": "#/$defs/a"}, "not in the schema"),
        ({"$ref": "https://example.com/a"}, "must begin"),
        ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, "itself"),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "itself|too large"),
        ({"if": {"$ref": "#"}, "then": {"$ref": "#"}, "else": {"$ref": "#"}}, "itself|too large|'if'"),
        ({"not": {"$ref": "#"}}, "itself"),
        (_deep(200), "too deep"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "itself"),
        ({"type": "array", "minItems": 10**9}, "too large"),
        ({"type": "array", "items": {"type": "array", "minItems": 300}, "minItems": 300}, "too large"),
        ({"type": "string", "minLength": 10**9}, "minLength"),
        ({"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 3}, "uniqueItems"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "limits"),
        ({"type": "object", "minProperties": 10**8}, "too large"),
        ({"type": "object", "minProperties": 10**8, "propertyNames": {"const": "a"}}, "too large"),
        ({"type": "string", "pattern": "^(){1000000000}x{9}$"}, "too large"),
        ({"type": "string", "pattern": "((((){99999}){99999}){99999}){99999}"}, "too large"),
        ({"type": "string", "pattern": ".{9000}"}, "too large"),
        ({"type": "frog"}, "frog"),
        ({"enum": ["a"], "type": "integer"}, "enum"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "string", "pattern": "(?<=a)b"}, "pattern"),
        ({"type": "object", "required": "a"}, "required"),
        (_wide(12), "too large"),
        (_often({"const": "x" * 1_000_000}), "too large"),
        (_often({"enum": list(range(50_000))}), "too large"),
        (_often({"anyOf": [{"type": "integer"}] * 20_000}), "too large"),
        (_often({"type": ["null"] * 20_000}), "too large"),
        (_often({"allOf": [{"properties": dict.fromkeys(map(str, range(3000)), True)}] * 20}), "too large"),
        (_often({"pattern": "^(.*)*(.*)*(.*)*z$", "minLength": 1000}), "too large"),
        (_often({"type": "object", "required": ["x" * 100_000]}), "too large"),
        ({"anyOf": [{"const": number} for number in range(500_000)], "not": {"type": "integer"}}, "too large"),
        ({"allOf": [{"type": list(map(str, range(20_000)))}] * 2}, "too large"),
        ({"allOf": [{"enum": list(range(50_000))}, {"enum": list(range(49_999, 99_999))}]}, "too large"),
    ],
)
def test_a_schema_without_a_value_is_refused_with_the_reason(schema: Any, why: str) -> None:
    with pytest.raises(Unwritable, match=why):
        value_for(schema, 1)


def test_values_differ_from_key_to_key() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    assert len({json.dumps(value_for(schema, key)) for key in range(100)}) > 90
    assert set(value_for(schema, 1)) == {"a", "b"}, "optional properties are written too"


@pytest.mark.parametrize("limits", [{}, {"minimum": 0.5}, {"maximum": 1e6}, {"minimum": -5, "maximum": 5}])
def test_a_number_is_whole_where_its_limits_are_far_apart(limits: dict[str, float]) -> None:
    """Programs declare `number` for what they read as an integer; 88.0 would be a fraction to some of them."""
    assert all(isinstance(value_for({"type": "number", **limits}, key), int) for key in range(50))
    near = {value_for({"type": "number", "minimum": 0, "maximum": 1}, key) for key in range(50)}
    assert any(isinstance(value, float) for value in near)
