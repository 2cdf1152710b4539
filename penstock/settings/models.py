r"""Which models a worker serves, and how that is written down.

    NAME=BACKEND[:option=value,...]      several, separated by `;`

Options start at the first `:option=`, so that `file.py:Class` and `module:Class` stay whole and a value may be a URL.
A comma or a semicolon inside a value is written `\,` or `\;`, a backslash before one of these `\\`. An option is a
word, or a field of a table's row: `upstreams.2.url` is the `url` of the second `[[models.NAME.upstreams]]` in TOML.
Knows nothing of backends: what an option means is the backend's business. One option is every model's:
`aliases=NAME+NAME`, other names of the same model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.settings.old_options import new_names

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPTION = re.compile(rf"{WORD.pattern}(?:\.[1-9][0-9]{{0,2}}\.{WORD.pattern})?")
ALIASES = "aliases"
GRAMMAR = "NAME=BACKEND[:option=value,…], several separated by `;`"

_OPTIONS_START = re.compile(rf":(?={OPTION.pattern}\s*=)")
_ESCAPE = re.compile(r"\\([\\,;])")
_SPECIAL, _QUOTED = re.compile(r"[\\,;]"), r"\\\g<0>"
_VALUE = r"(?:\\.|[^,;\\])+"
_SECRET_OPTION = re.compile(
    rf"(?i)([:,?&]\s*(?:\w+\.\d+\.)?(?:\w*_)?(?:api)?(?:key|token|secret|password)\s*=){_VALUE}"
)
# `key_env` names a variable. A value that does not look like the name of one may be the key itself.
_KEY_ENV = re.compile(rf"([:,]\s*(?:\w+\.\d+\.)?\w*key_env\w*\s*=\s*)(?![A-Z_][A-Z0-9_]*\s*(?:[,;]|$)){_VALUE}")
_URL_USER = re.compile(r"(?<=://)[^/@\s]*@")


def masked(text: str) -> str:
    """`text` fit to be shown: no passwords of URLs, no values of options that are named like secrets."""
    return _URL_USER.sub("***@", _KEY_ENV.sub(r"\1***", _SECRET_OPTION.sub(r"\1***", text)))


def shown_value(option: str, value: str) -> str:
    """The value of one option, fit to be shown."""
    shown = masked(f",{option}={_SPECIAL.sub(_QUOTED, value)}").partition("=")[2]
    return _ESCAPE.sub(r"\1", shown)


@dataclass(frozen=True, slots=True, repr=False)
class ModelSpec:
    """One model: the name that clients use, the backend that runs it, and that backend's options as text.

    Raises `ValueError` for anything that could not be written in the grammar above.
    """

    name: str
    backend: str
    options: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a model name: letters, digits and ._:/@+- (at most 128)")
        if not self.backend or self.backend != self.backend.strip() or not self.backend.isprintable():
            raise ValueError(f"model {self.name}: the backend is missing (NAME=BACKEND)")
        if re.search(r"[;=,\\]", self.backend):
            raise ValueError(f"model {self.name}: a backend holds none of ; = , \\ (is an option's name misspelt?)")
        for option, value in self.options.items():
            if not OPTION.fullmatch(option):
                raise ValueError(f"model {self.name}: {option!r} is not an option name (WORD, or TABLE.NUMBER.FIELD)")
            if value != value.strip() or not value.isprintable():
                raise ValueError(f"model {self.name}: option {option}: no line breaks, no space at the ends")
        for table, numbers in self._numbers().items():
            if missing := sorted(set(range(1, max(numbers))) - numbers):
                raise ValueError(f"model {self.name}: {table}.{max(numbers)} without {table}.{missing[0]}")
        for alias in self.names[1:]:
            if not NAME.fullmatch(alias):
                raise ValueError(
                    f"model {self.name}: {alias!r} in {ALIASES} is not a model name (names are joined by +)"
                )

    def _numbers(self) -> dict[str, set[int]]:
        """The numbers of the rows of each table."""
        found: dict[str, set[int]] = {}
        for option in self.options:
            table, dot, rest = option.partition(".")
            if dot:
                found.setdefault(table, set()).add(int(rest.partition(".")[0]))
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The model's own name, and its aliases."""
        aliases = self.options.get(ALIASES)
        return (self.name, *(aliases.split("+") if aliases else ()))

    @property
    def own_options(self) -> dict[str, str]:
        """The backend's own options."""
        return {option: value for option, value in self.options.items() if option != ALIASES}

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """One spec. Raises `ValueError` with the reason."""
        name, equals, rest = text.partition("=")
        if not equals:
            raise ValueError(f"{masked(text)!r} is not {GRAMMAR}")
        parts = _OPTIONS_START.split(rest, maxsplit=1)
        options: dict[str, str] = {}
        for item in _split(parts[1], ",") if len(parts) == 2 else ():
            option, equals, value = item.partition("=")
            option = option.strip()
            if not equals:
                raise ValueError(f"model {name.strip()}: option {option!r} has no value (option=value)")
            if option in options:
                raise ValueError(f"model {name.strip()}: option {option} is given twice")
            options[option] = _ESCAPE.sub(r"\1", value.strip())
        return cls(name.strip(), parts[0].strip(), options)

    @classmethod
    def of_table(cls, name: str, table: Any) -> ModelSpec:
        """From a TOML table: `backend`, and every other key an option, or an array of tables."""
        if not isinstance(table, Mapping) or not isinstance(table.get("backend"), str):
            raise ValueError(f'model {name}: a table with backend = "…" is needed')
        options: dict[str, str] = {}
        for key, value in table.items():
            if not WORD.fullmatch(str(key)):
                raise ValueError(f"model {name}: {key!r} is not an option name")
            if isinstance(value, Mapping) or (
                isinstance(value, list) and any(isinstance(row, Mapping) for row in value)
            ):
                options |= _rows(name, key, value)
            elif key != "backend":
                options[key] = _option(name, key, value)
        return cls(name, table["backend"], options)

    def format(self) -> str:
        """The text that parses to this spec."""
        options = ",".join(f"{k}={_SPECIAL.sub(_QUOTED, v)}" for k, v in self.options.items())
        return f"{self.name}={self.backend}" + (f":{options}" if options else "")

    def __repr__(self) -> str:
        return f"ModelSpec({masked(self.format())!r})"


def parse_models(text: str) -> tuple[ModelSpec, ...]:
    """Several specs, separated by `;`. Raises `ValueError`."""
    return tuple(ModelSpec.parse(part) for part in _split(text, ";") if part.strip())


def format_models(specs: Iterable[ModelSpec]) -> str:
    return ";".join(spec.format() for spec in specs)


def read_models(value: Any) -> tuple[ModelSpec, ...]:
    """From the value of a flag, a variable, a TOML file or a caller, without old names. Raises `ValueError`."""
    return tuple(with_new_names(spec) for spec in read_as_written(value))


def with_new_names(spec: ModelSpec) -> ModelSpec:
    """The same model without options under old names; `spec` itself if it has none. Raises `ValueError`."""
    try:
        options = new_names(spec.backend, spec.options)
    except ValueError as error:
        raise ValueError(f"model {spec.name}: {error}") from None
    return spec if options is None else ModelSpec(spec.name, spec.backend, options)


def read_as_written(value: Any) -> tuple[ModelSpec, ...]:
    """Like `read_models`, but options keep their old names."""
    if isinstance(value, str):
        specs = parse_models(value)
    elif isinstance(value, Mapping):
        specs = tuple(ModelSpec.of_table(name, table) for name, table in value.items())
    elif isinstance(value, Iterable):
        specs = tuple(
            spec for item in value for spec in ([item] if isinstance(item, ModelSpec) else read_as_written(item))
        )
    else:
        raise ValueError(f"is not {GRAMMAR}")
    names = [name for spec in specs for name in spec.names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"model {', '.join(twice)} is given twice")
    if not specs:
        raise ValueError(f"is empty; {GRAMMAR}")
    return specs


def _split(text: str, separator: str) -> list[str]:
    """At every `separator` that no backslash escapes; escapes stay as they are."""
    return re.findall(rf"(?:^|{separator})((?:\\[\\,;]|[^{separator}])*)", text)


def _rows(model: str, table: str, rows: Any) -> dict[str, str]:
    """The options in an array of tables: `TABLE.NUMBER.FIELD`, numbered from 1."""
    where = f"[[models.{model}.{table}]]"
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"model {model}: {table} must be an array of tables, each under {where}")
    if empty := [str(number) for number, row in enumerate(rows, 1) if not row]:
        raise ValueError(f"model {model}: {where} number {', '.join(empty)} is empty")
    return {
        f"{table}.{number}.{field}": _option(model, f"{table}.{number}.{field}", value)
        for number, row in enumerate(rows, 1)
        for field, value in row.items()
    }


def _option(model: str, option: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "+".join(value)
    raise ValueError(f"model {model}: option {option} must be text, a number, true/false, or a list of texts")
