"""From the text in `--model NAME=BACKEND:option=value` to a backend: found, options read, built.

Found by built-in name, then by entry point (group `penstock.backends`), then as `module:Class` or `file.py:Class`;
the working directory is importable. Options are read by the annotations of the constructor; nothing is evaluated.
Every mistake is a `ConfigError` that names the option, the value and what is allowed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import types
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from penstock.backends.base import Backend
from penstock.errors import ConfigError

GROUP = "penstock.backends"
BUILT_IN = {
    "mock": "penstock.backends.mock.engine:MockBackend",
    "openai": "penstock.backends.openai:OpenAIBackend",
}

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")


def build_backend(spec: str, options: Mapping[str, str]) -> Backend:
    """The backend that `spec` names, constructed with `options`."""
    cls = find_backend(spec)
    values = _read_options(spec, cls, options)
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"backend {spec}: {error}") from error


def find_backend(spec: str) -> type[Backend]:
    """The class that `spec` names. `ConfigError` when there is none, or when it is not a `Backend`."""
    found = _load(spec)
    if not (isinstance(found, type) and issubclass(found, Backend)) or found is Backend:
        raise ConfigError(f"backend {spec}: {found!r} is not a subclass of penstock.backends.Backend")
    return found


def _load(spec: str) -> Any:
    target = BUILT_IN.get(spec, spec)
    if ":" not in target:
        installed = {point.name: point for point in entry_points(group=GROUP)}
        if target not in installed:
            names = ", ".join(sorted({*BUILT_IN, *installed}))
            raise ConfigError(f"backend {spec!r} is not known; there are {names}, or module:Class, or file.py:Class")
        try:
            return installed[target].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"backend {spec}: {error}") from error
    place, _, name = target.rpartition(":")
    module = _import_file(spec, Path(place)) if place.endswith(".py") else _import_module(spec, place)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigError(f"backend {spec}: there is no {name} in {place}") from None


def _import_module(spec: str, name: str) -> types.ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # at the end: a file here must not hide an installed package
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError, SyntaxError) as error:
        raise ConfigError(f"backend {spec}: cannot import {name}: {error}") from error


def _import_file(spec: str, path: Path) -> types.ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"backend {spec}: there is no file {path}")
    name = f"penstock_backend_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    plan = importlib.util.spec_from_file_location(name, path)
    if plan is None or plan.loader is None:
        raise ConfigError(f"backend {spec}: cannot import {path}")
    module = sys.modules[name] = importlib.util.module_from_spec(plan)
    try:
        plan.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        del sys.modules[name]
        raise ConfigError(f"backend {spec}: cannot import {path}: {error}") from error
    return module


def _read_options(spec: str, cls: type[Backend], options: Mapping[str, str]) -> dict[str, Any]:
    known = backend_options(cls)
    for name in options:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ConfigError(f"backend {spec}: option {name}={options[name]!r} is not known; its options: {allowed}")
    missing = [name for name, (_, is_needed) in known.items() if is_needed and name not in options]
    if missing:
        raise ConfigError(f"backend {spec}: option {missing[0]} is missing")
    return {name: _read(spec, name, text, known[name][0]) for name, text in options.items()}


def backend_options(cls: type[Backend]) -> dict[str, tuple[Any, bool]]:
    """The constructor's parameters: name → (annotation, whether it must be given)."""
    init = cls.__init__
    if init is object.__init__:
        return {}
    try:
        hints = get_type_hints(init)
    except NameError as error:
        raise ConfigError(f"backend {cls.__qualname__}: its constructor's annotations: {error}") from error
    return {
        name: (hints.get(name, str), parameter.default is parameter.empty)
        for name, parameter in list(inspect.signature(init).parameters.items())[1:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _read(spec: str, name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [option for option in get_args(kind) if option is not types.NoneType]
        if len(kinds) != 1:
            raise ConfigError(f"backend {spec}: option {name} cannot be given as text ({kind})")
        kind = kinds[0]
    word = text.strip().lower()
    allowed = ""
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
    elif kind in (int, float):
        allowed = "a whole number" if kind is int else "a finite number"
        try:
            number = kind(word)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    else:
        raise ConfigError(f"backend {spec}: option {name} cannot be given as text ({kind})")
    raise ConfigError(f"backend {spec}: option {name}={text!r} is not allowed; it must be {allowed}")
