"""The strict edge: a request's bytes become a JSON object, and that a valid model, or one clear error.

Everything a client can send wrong ends here as a `PenstockError`; nothing of its content is quoted but field names.
Knows nothing of jobs, models or routes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from penstock.errors import InvalidRequest
from penstock.http.field_errors import NAME, Path, describe
from penstock.http.sifted import as_written

MAX_DEPTH = 128  # an object in a schema takes two levels
MAX_VALUES = 50_000  # keys do not count; an empty array or object counts as two
MAX_KEYS = 1000
MAX_INTEGER_DIGITS = 19  # what 64 bits hold
MAX_SHOWN_NAME = 64

Form = TypeVar("Form", bound=BaseModel)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Refused(ValueError):
    """A value that JSON or a sane reader does not allow, found while parsing."""


def parse_json(data: bytes, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The JSON object in `data`. Anything but strict JSON in UTF-8 is an `InvalidRequest`.

    Refused too: duplicate keys, numbers that are not finite, integers beyond 64 bits, strings with
    unpaired surrogates, more than `MAX_KEYS` keys in one object, and more than `MAX_VALUES` values or
    `max_depth` levels (both counted before anything is parsed).
    """
    text = _decode(data)
    _check_shape(data, max_depth)
    try:
        value = _STRICT.decode(text)
    except _Refused as refusal:
        _refuse(text, refusal)
    except json.JSONDecodeError as error:
        problem = error.msg.rstrip(": ").removesuffix(" at")
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"The body is not valid JSON: {problem} at {where}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if "\\u" in text and (fault := _find_fault(value, ())):
        raise _fault(*fault)
    return value


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise InvalidRequest("The body must not begin with a byte order mark.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 (at byte {error.start}).") from None
    if "\x00" in text:
        raise InvalidRequest("The body contains a NUL character, which JSON writes as \\u0000.")
    if not text.strip(" \t\r\n"):
        raise InvalidRequest("The body is empty; it must be a JSON object.")
    return text


def num_marks(data: bytes) -> int:
    """An upper bound of the number of values in `data`: every value but the first follows one of these bytes."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


# One match for each bracket and comma outside strings, and what is in front of it, so that Python looks at no
# string, closed or not. Nothing is tried twice and the end matches too: linear whatever the bytes are.
_TO_NEXT_MARK = re.compile(rb'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[^"\[\]{},]++)*+([\[\]{},]|\Z)', re.DOTALL)


def _check_shape(data: bytes, max_depth: int) -> None:
    """At most `max_depth` levels and `MAX_VALUES` values; looks closer only where there may be more."""
    if data.count(b"[") + data.count(b"{") <= max_depth and (len(data) < MAX_VALUES or num_marks(data) < MAX_VALUES):
        return
    depth = 0
    num = 1
    for match in _TO_NEXT_MARK.finditer(data):
        mark = match[1]
        if mark in b"]}":  # also the end, which is empty
            depth -= 1
            continue
        num += 1
        if num > MAX_VALUES:
            raise InvalidRequest(f"The body contains more than {MAX_VALUES} values (MAX_VALUES).")
        if mark != b",":
            depth += 1
            if depth > max_depth:
                raise InvalidRequest(f"The body is nested more than {max_depth} levels deep (MAX_DEPTH).")


def _integer(digits: str) -> int:
    if _is_long(digits):
        raise _Refused("is an integer of too many digits")
    return int(digits)


def _is_long(digits: str) -> bool:
    return len(digits.removeprefix("-")) > MAX_INTEGER_DIGITS


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused("is a number too large")
    return value


def _constant(name: str) -> NoReturn:
    raise _Refused(f"is {name}, which is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Refused("is given twice")
    if len(value) > MAX_KEYS:
        raise _Refused(_TOO_WIDE)
    return value


_TOO_WIDE = f"has more than {MAX_KEYS} keys (MAX_KEYS)"
_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)


class _Marker:
    """Replaces a refused value in a second, forgiving reading, to find where it was."""

    def __init__(self, digits: str) -> None:
        self.digits = digits


class _Twice(dict[str, Any]):
    """An object in which `key` occurs twice."""

    key: str | None = None


def _forgiving_object(pairs: list[tuple[str, Any]]) -> _Twice:
    value = _Twice()
    for key, item in pairs:
        if key in value:
            value.key = key
        value[key] = item
    return value


_FORGIVING = json.JSONDecoder(
    object_pairs_hook=_forgiving_object,
    parse_int=lambda digits: _Marker(digits) if _is_long(digits) else int(digits),
    parse_float=lambda digits: float(digits) if math.isfinite(float(digits)) else _Marker(digits),
    parse_constant=_Marker,
)


def _refuse(text: str, refusal: _Refused) -> NoReturn:
    """Read once more, to name the field."""
    try:
        fault = _find_fault(_FORGIVING.decode(text), ())
    except json.JSONDecodeError:  # it is broken further on, too
        fault = None
    if fault is None:
        raise InvalidRequest(f"A value {refusal}.")
    raise _fault(fault[0], fault[1] or str(refusal))


def _fault(path: Path, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{_name(path)} {problem}.", param=dotted(path))


def _find_fault(value: Any, path: Path) -> tuple[Path, str] | None:
    """The place of the first invalid value; an empty problem means the value that stopped the parser."""
    if isinstance(value, str):
        problem = _text_problem(value)
        return (path, problem) if problem else None
    if isinstance(value, _Marker):
        return path, ""
    if isinstance(value, dict):
        if isinstance(value, _Twice) and value.key is not None:
            return (*path, value.key), "is given twice"
        if len(value) > MAX_KEYS:
            return path, _TOO_WIDE
        for key, item in value.items():
            if problem := _text_problem(key):
                return path, f"has a key that {problem}"
            if fault := _find_fault(item, (*path, key)):
                return fault
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if fault := _find_fault(item, (*path, i)):
                return fault
    return None


def _text_problem(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "contains half of a surrogate pair, which is not text"
    return ""


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────


def validate(model: type[Form], data: dict[str, Any]) -> Form:
    """An instance of `model`, or one `InvalidRequest` whose `param` is the dotted name of the field at fault."""
    known = fields_of(model)
    if not known.issuperset(data):  # one error instead of one for each
        raise _described((next(name for name in data if name not in known),), f"Unknown field {NAME}.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        path, problem = describe(error, model, data)
    raise _described(as_written(path, data), problem)


@lru_cache(maxsize=64)
def fields_of(model: type[BaseModel]) -> frozenset[str]:
    """The names that a client may give at the top of `model`, which ignores and allows no others."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _described(path: Path, problem: str) -> InvalidRequest:
    param = dotted(path)
    if not param:
        problem = problem.replace(f"field {NAME}", "field")
    return InvalidRequest(problem.replace(NAME, _name(path)), param=param)


def _name(path: Path) -> str:
    param = dotted(path)
    return f"'{param}'" if param else "A field" if path else "The body"


def dotted(path: Sequence[str | int]) -> str | None:
    """`messages.0.role`; None for the body itself, or where a name is too odd to be shown."""
    names = [str(part) for part in path]
    if not names or any(len(name) > MAX_SHOWN_NAME or not name.isprintable() for name in names):
        return None
    return ".".join(names)
