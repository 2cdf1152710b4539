r"""Which models a worker serves, and how that is written down.

    NAME=BACKEND[:option=value,...]      several, separated by `;`

Options start at the first `:word=`, so that `file.py:Class` and `module:Class` stay whole and a value may be a URL. A
comma or a semicolon inside a value is written `\,` or `\;`, a backslash before one of these `\\`. Knows nothing of
backends: what an option means is the backend's business. One option is every model's: `aliases=NAME+NAME`, other names
of the same model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ALIASES = "aliases"
GRAMMAR = "NAME=BACKEND[:option=value,…], several separated by `;`"

_OPTIONS_START = re.compile(rf":(?={WORD.pattern}\s*=)")
_ESCAPE = re.compile(r"\\([\\,;])")
_SPECIAL, _QUOTED = re.compile(r"[\\,;]"), r"\\\g<0>"
_SECRET_OPTION = re.compile(r"(?i)([:,?&]\s*(?:\w*_)?(?:api)?(?:key|token|secret|password)\s*=)(?:\\.|[^,;\\])+")
_URL_USER = re.compile(r"(?<=://)[^/@\s]*@")


def masked(text: str) -> str:
    """`text` fit to be shown: no passwords of URLs, no values of options that are named like secrets."""
    return _URL_USER.sub("***@", _SECRET_OPTION.sub(r"\1***", text))


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
            if not WORD.fullmatch(option):
                raise ValueError(f"model {self.name}: {option!r} is not an option name")
            if value != value.strip() or not value.isprintable():
                raise ValueError(f"model {self.name}: option {option}: no line breaks, no space at the ends")
        for alias in self.names[1:]:
            if not NAME.fullmatch(alias):
                raise ValueError(
                    f"model {self.name}: {alias!r} in {ALIASES} is not a model name (names are joined by +)"
                )

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
        """From a TOML table: `backend`, and every other key an option."""
        if not isinstance(table, Mapping) or not isinstance(table.get("backend"), str):
            raise ValueError(f'model {name}: a table with backend = "…" is needed')
        return cls(name, table["backend"], {k: _option(name, k, v) for k, v in table.items() if k != "backend"})

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
    """From the value of a flag, a variable, a TOML file or a caller. Raises `ValueError`."""
    if isinstance(value, str):
        specs = parse_models(value)
    elif isinstance(value, Mapping):
        specs = tuple(ModelSpec.of_table(name, table) for name, table in value.items())
    elif isinstance(value, Iterable):
        specs = tuple(spec for item in value for spec in ([item] if isinstance(item, ModelSpec) else read_models(item)))
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


def _option(model: str, option: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "+".join(value)
    raise ValueError(f"model {model}: option {option} must be text, a number, true/false, or a list of texts")
