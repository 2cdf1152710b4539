"""Finds the values: flags > environment > `.env` in the working directory > TOML file > default.

All bad values are reported together, each with its variable, the value and what is allowed. Knows nothing of what a
setting means.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

from dotenv.parser import parse_stream
from pydantic import ValidationError

from penstock.errors import ConfigError
from penstock.settings.about import PREFIX, About, allowed, env_name, flag_name, is_secret
from penstock.settings.declaration import Settings
from penstock.settings.models import masked, read_as_written, with_new_names
from penstock.settings.old_options import old_names
from penstock.settings.toml import to_toml

CONFIG = PREFIX + "CONFIG"

# Variables that are not settings: `penstock ask`, a supervised child and the crash points of the tests read them.
_OTHERS = re.compile(r"PENSTOCK_(CONFIG|URL|API_KEY|LIFELINE_FD|PARENT_PIPE_FD|LISTENER_FD|TEST_\w+)")
# Variables that Kubernetes puts into every container for a Service named penstock, or penstock-something.
_KUBERNETES = re.compile(r"PENSTOCK_\w*?(_?SERVICE_(HOST|PORT)(_\w+)?|_?PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)")
_KUBERNETES_URL = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True)
class _Layer:
    """One place where values come from. `label` names a setting as it is written there."""

    origin: str
    values: dict[str, Any]
    label: Callable[[str], str]


def load_settings(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Settings:
    """The effective settings. `flags`: by field name, None for "not given", and `config` for a TOML file.

    `environ` defaults to the process' own, `directory` (of `.env`) to the working directory. An empty variable counts
    as unset, but is an error for a setting that `guards`. Raises `ConfigError` that names every bad value.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    environ = os.environ if environ is None else environ
    dotenv = _read_dotenv((directory or Path()) / ".env")
    config = given.pop("config", None) or environ.get(CONFIG) or dotenv.get(CONFIG)
    problems: list[str] = []
    notes: list[str] = []
    layers = [_Layer("flag", given, lambda name: f"{flag_name(name)} ({env_name(name)})")]
    if strange := sorted(set(given) - set(Settings.model_fields)):
        raise ConfigError(f"no such setting: {', '.join(strange)}")
    for origin, variables, where in (("environment", environ, ""), (".env", dotenv, " (.env)")):
        values = _from_variables(variables, where, notes)
        layers.append(_Layer(origin, values, partial(_label, where)))
    if config:
        path = Path(config)
        layers.append(_Layer(path.name, _from_toml(path, problems), lambda name: f"{name} ({path.name})"))
    return _settle(layers, problems, notes)


def _label(where: str, name: str) -> str:
    return env_name(name) + where


def _settle(layers: list[_Layer], problems: list[str], notes: list[str]) -> Settings:
    source: dict[str, _Layer] = {}
    for layer in layers:
        for name in layer.values:
            source.setdefault(name, layer)
    values = {name: layer.values[name] for name, layer in source.items()}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        bad: dict[str, str] = {}
        for detail in error.errors(include_url=False, include_input=False):
            name = str(detail["loc"][0])
            if name in source:  # else a default that needs another, bad value
                reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
                bad.setdefault(name, _complain(name, source[name].label(name), values[name], reason))
        problems += bad.values()
        settings = None
    if problems or settings is None:
        head = "invalid setting" if len(problems) == 1 else f"{len(problems)} invalid settings"
        raise ConfigError("\n  ".join([head + ":", *problems]))
    settings._origins.update({name: layer.origin for name, layer in source.items()})
    if "models" in source:
        notes += _old_options(source["models"].label("models"), values["models"])
    settings._notes = tuple(notes)
    return settings


def _old_options(label: str, value: Any) -> list[str]:
    """A notice for each model with options under old names: the same model under the new ones, in the same form."""
    notes = []
    for spec in read_as_written(value):
        if old := old_names(spec.backend, spec.options):
            new = with_new_names(spec)
            form = to_toml(new) if isinstance(value, Mapping) else masked(new.format())
            names = f"{label}: model {spec.name} uses old names of options ({', '.join(old)})"
            notes.append(f"{names}, which the next release refuses. The new form is\n{indent(form, '  ')}")
    return notes


def _complain(name: str, label: str, value: Any, reason: str) -> str:
    info = Settings.model_fields[name]
    if is_secret(info):
        what, reason = f"{label} (its value is secret)", ""  # the reason may quote the value
    elif isinstance(value, str | int | float):
        what = f"{label}={masked(str(value))!r}" if isinstance(value, str) else f"{label}={value}"
    elif isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        what = f"{label}={masked(';'.join(value))!r}"
    else:
        what = label
    parts = [masked(reason)] if reason else []
    if not (
        reason and isinstance(value, Mapping)
    ):  # a TOML table is not written in the grammar that is allowed as text
        parts.append(f"allowed is {allowed(info)}")
    text = f"{what}: {'; '.join(parts)}"
    if isinstance(value, str) and _KUBERNETES_URL.match(value):
        text += (
            f". This value comes from Kubernetes, which sets {env_name(name)} for a Service of that name: "
            "give the pod `enableServiceLinks: false`, rename the Service, or use the flag"
        )
    return text


def _from_variables(variables: Mapping[str, str], where: str, notes: list[str]) -> dict[str, Any]:
    known = {env_name(name): name for name in Settings.model_fields}
    guards = {env_name(name) for name, info in Settings.model_fields.items() if About.of(info).guards}
    values: dict[str, Any] = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX) or not (text.strip() or variable in guards):
            continue
        if variable in known:
            values[known[variable]] = text.strip()
        elif not (_OTHERS.fullmatch(variable) or _is_kubernetes(variable, text)):
            notes.append(f"{variable}{where} is not a Penstock setting and is ignored{_nearest(variable, known)}")
    return values


def _is_kubernetes(variable: str, text: str) -> bool:
    return bool(_KUBERNETES.fullmatch(variable) or (variable.endswith("_PORT") and _KUBERNETES_URL.match(text)))


def _from_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin files with U+FEFF
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: the configuration file cannot be read: {error}") from error
    for key in sorted(set(table) - set(Settings.model_fields)):
        problems.append(f"{key} ({path.name}) is not a setting{_nearest(key, Settings.model_fields)}")
    return {key: value for key, value in table.items() if key in Settings.model_fields}


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if wrong := [str(item.original.line) for item in bindings if item.error]:
        raise ConfigError(f"{path}: line {', '.join(wrong)} is not NAME=VALUE")
    return {item.key: item.value or "" for item in bindings if item.key}


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
