"""From the text in `--model NAME=BACKEND:option=value` to a backend: found, options read, built.

Found by built-in name, then by entry point (group `penstock.backends`), then as `module:Class` or `file.py:Class`;
the working directory is importable. `options` reads the text of its options.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from penstock.backends.base import Backend
from penstock.backends.options import read_options
from penstock.errors import ConfigError

GROUP = "penstock.backends"
BUILT_IN = {
    "mock": "penstock.backends.mock.engine:MockBackend",
    "openai": "penstock.backends.openai:OpenAIBackend",
}


def build_backend(spec: str, options: Mapping[str, str]) -> Backend:
    """The backend that `spec` names, constructed with `options`."""
    cls = find_backend(spec)
    values = read_options(spec, cls, options)
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
    _make_working_directory_importable()
    module = _import_file(spec, Path(place)) if place.endswith(".py") else _import_module(spec, place)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigError(f"backend {spec}: there is no {name} in {place}") from None


def _make_working_directory_importable() -> None:
    """For a module named in a spec, and for what such a module or file imports itself."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # at the end: a file here must not hide an installed package


def _import_module(spec: str, name: str) -> types.ModuleType:
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
