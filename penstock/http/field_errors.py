"""The fault of a field in plain words: pydantic's errors become one sentence with the allowed values.

Knows nothing of where the data came from; never quotes a value, as it may be a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, Discriminator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]

NAME = "{name}"  # placeholder in a sentence for the name of the field
MAX_FAULTS = 100  # of one body that are looked at: it may have thousands, and pydantic makes an object of each

_NOUNS = {
    "string_type": "a string",
    "string_sub_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}

_LENGTHS = ("too_short", "too_long")

_RULES: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than_equal": lambda ctx: f"be at least {_shown(ctx['ge'])}",
    "greater_than": lambda ctx: f"be more than {_shown(ctx['gt'])}",
    "less_than_equal": lambda ctx: f"be at most {_shown(ctx['le'])}",
    "less_than": lambda ctx: f"be less than {_shown(ctx['lt'])}",
    "multiple_of": lambda ctx: f"be a multiple of {_shown(ctx['multiple_of'])}",
    "string_too_short": lambda ctx: _at_least(ctx["min_length"], "character"),
    "string_too_long": lambda ctx: _at_most(ctx["max_length"], "character"),
    "too_short": lambda ctx: _at_least(ctx["min_length"], "item"),
    "too_long": lambda ctx: _at_most(ctx["max_length"], "item"),
    "literal_error": lambda ctx: f"be {ctx['expected']}",
    "enum": lambda ctx: f"be {ctx['expected']}",
    "union_tag_invalid": lambda ctx: f"have a type that is one of {ctx['expected_tags']}",
    "union_tag_not_found": lambda ctx: "say its type",
    "string_pattern_mismatch": lambda ctx: f"match {ctx['pattern']}",
}


def describe(error: ValidationError, model: type[BaseModel], data: Any) -> tuple[Path, str]:
    """Where the first fault is, and a sentence about it, in which `NAME` is in place of the field.

    A field that may have several types has an error for each; those that got furthest are joined into one sentence. A
    length is wrong only in a value of the right type.
    """
    if error.error_count() > MAX_FAULTS:
        path, error = _first_field(error, model, data)
        if error.error_count() > MAX_FAULTS:
            return path, f"{NAME} has more than {MAX_FAULTS} faults."
    errors = error.errors(include_url=False, include_input=False)
    faults = [(_path(details, model, data), details) for details in errors]
    first = faults[0][0][:1]
    faults = [fault for fault in faults if fault[0][:1] == first]
    # A list of too many texts has the type of a list of texts; as a list of numbers its first item would be wrong.
    sized = [fault for fault in faults if fault[1]["type"] in _LENGTHS]
    path = max((fault[0] for fault in sized or faults), key=len)
    here = [details for place, details in faults if place == path]
    here = [details for details in here if details["type"] not in _NOUNS] or here
    return path, _sentence(path, here, model)


def _first_field(error: ValidationError, model: type[BaseModel], data: Any) -> tuple[Path, ValidationError]:
    """The first field with faults, and these alone. A `ValidationError` cannot say where its first one is."""
    blank = model.model_construct()
    for name, value in data.items():
        try:
            model.__pydantic_validator__.validate_assignment(blank, name, value)
        except ValidationError as faults:
            return (name,), faults
    return (), error


def _path(details: ErrorDetails, model: type[BaseModel], data: Any) -> Path:
    """The error's place in the data; pydantic's own also names the members of unions that it tried."""
    path: list[str | int] = []
    here = data
    kinds: list[_Kind] = [(model, False)]
    is_tag = False
    for part in details["loc"]:
        # The part after a union by tag is the tag; a field in it may be called the same (image_url).
        is_tag = not is_tag and isinstance(here, dict) and any(is_tagged for _, is_tagged in kinds)
        if is_tag:
            continue
        is_index = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if is_index or (isinstance(here, dict) and part in here):
            path.append(part)
            here = here[part]
            kinds = [found for kind, _ in kinds for found in _kinds_in(kind, part)]
    if details["type"] == "missing":
        path.append(details["loc"][-1])
    return tuple(path)


_Kind = tuple[Any, bool]  # a type that a value may have, and whether a tag in the value chooses it among others


def _kinds(annotation: Any, *, is_tagged: bool = False) -> Iterator[_Kind]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *rules = get_args(annotation)
        yield from _kinds(inner, is_tagged=is_tagged or any(map(_names_tag, rules)))
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _kinds(member, is_tagged=is_tagged)
    else:
        yield annotation, is_tagged


def _names_tag(rule: object) -> bool:
    return isinstance(rule, Discriminator) or (isinstance(rule, FieldInfo) and rule.discriminator is not None)


def _kinds_in(kind: Any, part: str | int) -> Iterator[_Kind]:
    """The kinds that a field, an item or a value of `kind` may have."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                yield from _kinds(field.annotation, is_tagged=any(map(_names_tag, (field, *field.metadata))))
    elif get_origin(kind) in (list, tuple, dict):
        yield from _kinds(get_args(kind)[-1])


def _sentence(path: Path, here: list[ErrorDetails], model: type[BaseModel]) -> str:
    kind, ctx = here[0]["type"], here[0].get("ctx", {})
    if kind == "extra_forbidden":
        return f"Unknown field {NAME}."
    if kind == "missing":
        return f"{NAME} is required."
    if kind in ("value_error", "assertion_error"):
        reason = str(ctx.get("error", "")).strip().rstrip(".")
        return f"{NAME}: {reason}." if reason else f"{NAME} is not valid."
    if bounds := _bounds(model, path, kind):
        return f"{NAME} must be {bounds}."
    nouns = list(dict.fromkeys(_NOUNS[details["type"]] for details in here if details["type"] in _NOUNS))
    rules = [_RULES[each["type"]](each.get("ctx", {})) for each in here if each["type"] in _RULES]
    wanted = [*rules, *([f"be {' or '.join(nouns)}"] if nouns else [])]
    return f"{NAME} must {' or '.join(dict.fromkeys(wanted))}." if wanted else f"{NAME} is not valid ({kind})."


def _bounds(model: type[BaseModel], path: Path, kind: str) -> str:
    """Both ends of a top-level number's range, where it has both: pydantic reports only the one that was crossed."""
    if len(path) != 1 or kind not in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        return ""
    low = high = ""
    for rule in _rules_of(model.model_fields.get(str(path[0]))):
        if isinstance(rule, annotated_types.Ge):
            low = f"at least {_shown(rule.ge)}"
        elif isinstance(rule, annotated_types.Gt):
            low = f"more than {_shown(rule.gt)}"
        elif isinstance(rule, annotated_types.Le):
            high = f"at most {_shown(rule.le)}"
        elif isinstance(rule, annotated_types.Lt):
            high = f"less than {_shown(rule.lt)}"
    return f"{low} and {high}" if low and high else ""


def _rules_of(field: FieldInfo | None) -> Iterator[object]:
    if field is None:
        return
    yield from field.metadata
    for member in get_args(field.annotation):
        if get_origin(member) is Annotated:
            for rule in get_args(member)[1:]:
                yield from rule.metadata if isinstance(rule, FieldInfo) else (rule,)


def _at_least(count: int, noun: str) -> str:
    return "not be empty" if count == 1 else f"have at least {count} {noun}s"


def _at_most(count: int, noun: str) -> str:
    return f"have at most {count} {noun}{'' if count == 1 else 's'}"


def _shown(number: Any) -> str:
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)
