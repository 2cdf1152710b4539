"""From a model's options, which are text, to the arguments of its backend's constructor, by their annotations.

`str`, `int`, `float`, `bool`, `Literal[…]`, or one of these with `| None`. A table is `tuple[Row, ...]` of a dataclass
whose fields are of these types: the option `upstreams.2.url` is the field `url` in the second row of `upstreams`. A
single row may be written without the name of its table: `url` is then `upstreams.1.url`. A row may check its values
in `__post_init__`: its `ValueError` begins with the field's name, and the row's is put in front. Nothing is evaluated.

Every mistake is a `ConfigError` that names the option and what is allowed.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from penstock.errors import ConfigError
from penstock.settings.models import shown_value

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")
_NUMBERED = re.compile(r"([a-z_]+)([1-9]\d?)")


@dataclass(frozen=True, slots=True)
class _Parameter:
    kind: Any  # its annotation
    is_needed: bool


@dataclass(frozen=True, slots=True)
class _Table:
    row: type
    fields: dict[str, _Parameter]


@dataclass(frozen=True, slots=True)
class _Given:
    """An option as it is written, and its text."""

    option: str
    text: str


_Row = dict[str, _Given]  # by field


def read_options(spec: str, cls: type, options: Mapping[str, str]) -> dict[str, Any]:
    """The arguments for `cls`, which is what `spec` names."""
    known = _parameters(cls)
    tables = {name: table for name, it in known.items() if (table := _table_of(it.kind)) is not None}
    try:
        plain, rows = _sort(options, known, tables)
        values = _values(plain, known)
        for name, by_number in rows.items():
            values[name] = tuple(_build(row, tables[name]) for _, row in sorted(by_number.items()))
    except ValueError as error:
        raise ConfigError(f"backend {spec}: {error}") from None
    return values


def _parameters(cls: type) -> dict[str, _Parameter]:
    """Those of the constructor, without `self`."""
    init = cls.__init__  # type: ignore[misc]  # mypy fears a subclass with another one: this is the one that is called
    if init is object.__init__:
        return {}
    try:
        hints = get_type_hints(init)
    except NameError as error:
        raise ConfigError(f"backend {cls.__qualname__}: its constructor's annotations: {error}") from error
    return {
        name: _Parameter(hints.get(name, str), parameter.default is parameter.empty)
        for name, parameter in list(inspect.signature(init).parameters.items())[1:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _table_of(kind: Any) -> _Table | None:
    """The table that a parameter with this annotation is; None for a plain option."""
    row, *more = get_args(kind) or (None,)
    if get_origin(kind) is tuple and more == [...] and isinstance(row, type) and is_dataclass(row):
        return _Table(row, _parameters(row))
    return None


def _sort(
    options: Mapping[str, str], known: dict[str, _Parameter], tables: dict[str, _Table]
) -> tuple[_Row, dict[str, dict[int, _Row]]]:
    """The plain options, and the rows of each table by number."""
    plain: _Row = {}
    rows: dict[str, dict[int, _Row]] = {}
    alone: dict[str, _Row] = {}  # a table's only row, without the table's name
    owners = {field: name for name, table in tables.items() for field in table.fields if field not in known}
    for option, text in options.items():
        given = _Given(option, text)
        name, _, rest = option.partition(".")
        number, _, field = rest.partition(".")
        if rest and name in tables and field in tables[name].fields:
            rows.setdefault(name, {}).setdefault(int(number), {})[field] = given
        elif option in tables:
            raise ValueError(
                f"{option} is a table: its options are {option}.NUMBER.FIELD, in TOML [[models.NAME.{option}]]"
            )
        elif option in known:
            plain[option] = given
        elif option in owners:
            alone.setdefault(owners[option], {})[option] = given
        else:
            raise ValueError(f"option {option} is not known{_nearest(option, known, tables)}")
    for name, row in alone.items():
        if name in rows:
            option = next(iter(row))
            raise ValueError(f"option {option} is outside the table {name}; write it as {name}.NUMBER.{option}")
        rows[name] = {1: row}
    for name in tables:
        if known[name].is_needed:
            rows.setdefault(name, {1: {}})  # an empty row, for which `_values` names the missing field
    return plain, rows


def _values(given: _Row, known: dict[str, _Parameter]) -> dict[str, Any]:
    missing = [name for name, it in known.items() if it.is_needed and name not in given and _table_of(it.kind) is None]
    if missing:
        raise ValueError(f"option {_prefix(given)}{missing[0]} is missing")
    return {name: _read(it.option, it.text, known[name].kind) for name, it in given.items()}


def _build(given: _Row, table: _Table) -> Any:
    """The row. What it raises about its values names the row as it was written."""
    values = _values(given, table.fields)
    try:
        return table.row(**values)
    except ValueError as error:
        raise ValueError(f"{_prefix(given)}{error}") from None


def _prefix(given: _Row) -> str:
    """The prefix of a field's name: `upstreams.2.`, or "" for a row without the name of its table."""
    table, dot, _ = next(iter(given.values())).option.rpartition(".") if given else ("", "", "")
    return table + dot


def _nearest(option: str, known: dict[str, _Parameter], tables: dict[str, _Table]) -> str:
    """The rest of the error message: which options there are, and which one was probably meant."""
    name, _, rest = option.partition(".")
    number, _, field = rest.partition(".")
    numbered = _NUMBERED.fullmatch(option)
    likely = [
        f"{table}.{numbered[2]}.{numbered[1]}" for table, it in tables.items() if numbered and numbered[1] in it.fields
    ]
    if rest and name in tables:
        there = f"; the fields of {name}: {', '.join(tables[name].fields)}"
        likely = [f"{name}.{number}.{near}" for near in difflib.get_close_matches(field, tables[name].fields, 1)]
    else:
        plain = [one for one in known if one not in tables]
        fields = [field for it in tables.values() for field in it.fields if field not in known]
        there = f"; its options: {', '.join([*fields, *plain]) or 'none'}"
        likely = likely or difflib.get_close_matches(option, [*fields, *plain, *tables], 1)
    return there + (f"; did you mean {likely[0]}?" if likely else "")


def _read(option: str, text: str, kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [one for one in get_args(kind) if one is not types.NoneType]
        kind = kinds[0] if len(kinds) == 1 else kind
    word = text.strip().lower()
    near = ""
    if kind is str:
        return text
    if kind is bool:
        allowed = "true or false"
        if word in _TRUE + _FALSE:
            return word in _TRUE
    elif get_origin(kind) is Literal:
        allowed = " or ".join(map(str, get_args(kind)))
        for value in get_args(kind):
            if str(value) == text:
                return value
        near = "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(word, map(str, get_args(kind)), 1))
    elif kind in (int, float):
        allowed = "a whole number" if kind is int else "a finite number"
        try:
            number = kind(word)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    else:
        raise ValueError(f"option {option} cannot be given as text ({kind})")
    raise ValueError(f"option {option}={shown_value(option, text)!r} is not allowed; it must be {allowed}{near}")
