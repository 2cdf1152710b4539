"""From `NAME=BACKEND:option=value` to a backend, and every way in which that is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest

from penstock.backends import build_backend, loading
from penstock.backends.base import Backend
from penstock.backends.mock.engine import MockBackend
from penstock.errors import ConfigError
from penstock.processes.worker import build_backends
from penstock.settings.models import read_models

SOURCE = """
from penstock.backends import Backend

class Echo(Backend):
    def __init__(self, pause_ms: float = 1.0):
        self.pause_ms = pause_ms

    async def stream(self, job):
        yield job.text

not_a_class = 3
"""


class Fussy(Backend):
    def __init__(  # type: ignore[no-untyped-def]
        self,
        url: str,
        *,
        size: int = 1,
        ratio: float | None = None,
        fast: bool = False,
        mode: Literal["a", "b"] = "a",
        free="text",
        hook: list[str] | None = None,
    ) -> None:
        if size > 10:
            raise ValueError("size must be at most 10")
        self.seen = (url, size, ratio, fast, mode, free)

    async def stream(self, job):  # type: ignore[no-untyped-def]
        yield job.text


FUSSY = f"{__name__}:Fussy"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Fussy.__module__])


def test_by_built_in_name() -> None:
    backend = build_backend("mock", {"step_ms": "5", "chain": "true"})
    assert isinstance(backend, MockBackend)


def test_all_names_of_a_model_are_one_backend() -> None:
    backends = build_backends(read_models("big=mock:aliases=large+gpt-4o,step_ms=5"))
    assert list(backends) == ["big", "large", "gpt-4o"]
    assert len(set(map(id, backends.values()))) == 1


def test_by_module_and_class_with_every_kind_of_option() -> None:
    options = {"url": "http://h:1/x", "size": "7", "ratio": "0.5", "fast": "yes", "mode": "b", "free": "7"}
    backend = build_backend(FUSSY, options)
    assert isinstance(backend, Fussy)
    assert backend.seen == ("http://h:1/x", 7, 0.5, True, "b", "7")


def test_by_file_and_class(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    backend = build_backend(f"{tmp_path}/mine.py:Echo", {"pause_ms": "2"})
    assert backend.pause_ms == 2.0  # type: ignore[attr-defined]
    assert type(build_backend(f"{tmp_path}/mine.py:Echo", {})) is type(backend), "one file, one module"


def test_by_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_backend_of_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(Path(loading.__file__).parents[2])])  # a list of its own: nothing to put back
    assert type(build_backend("a_backend_of_mine:Echo", {})).__name__ == "Echo"


def test_a_file_may_import_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_helper_of_mine.py").write_text(SOURCE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text("from a_helper_of_mine import Echo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(Path(loading.__file__).parents[2])])
    assert type(build_backend("sub/mine.py:Echo", {})).__module__ == "a_helper_of_mine"


def test_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("other", "penstock.backends.mock.engine:MockBackend", "penstock.backends")
    monkeypatch.setattr(loading, "entry_points", lambda group: [point])
    assert isinstance(build_backend("other", {}), MockBackend)


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("nope", {}, ["'nope'", "mock", "module:Class"]),
        ("no_such_module:X", {}, ["no_such_module"]),
        ("no/such/file.py:X", {}, ["no file", "file.py"]),
        ("json:Nope", {}, ["no Nope in json"]),
        ("json:JSONDecoder", {}, ["not a subclass"]),
        ("penstock.backends:Backend", {}, ["not a subclass"]),
        ("mock", {"stepms": "5"}, ["option stepms is not known", "chain", "did you mean step_ms?"]),
        ("mock", {"step_ms": "fast"}, ["step_ms='fast'", "finite number"]),
        ("mock", {"step_ms": "nan"}, ["step_ms='nan'", "finite number"]),
        ("mock", {"step_ms": "-1"}, ["at least 0"]),
        ("mock", {"chain": "maybe"}, ["chain='maybe'", "true or false"]),
        (FUSSY, {}, ["url", "missing"]),
        (FUSSY, {"url": "u", "size": "1.5"}, ["size='1.5'", "whole number"]),
        (FUSSY, {"url": "u", "size": "11"}, ["at most 10"]),
        (FUSSY, {"url": "u", "mode": "c"}, ["mode='c'", "a or b"]),
        (FUSSY, {"url": "u", "hook": "x"}, ["hook", "cannot be given as text"]),
        (FUSSY, {"self": "x"}, ["option self is not known"]),
    ],
)
def test_the_fault_is_named(spec: str, options: dict[str, str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build_backend(spec, options)
    for part in said:
        assert part in refused.value.message


def test_a_broken_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_thing_at_all\n")
    with pytest.raises(ConfigError, match="no_such_thing_at_all"):
        build_backend(f"{tmp_path}/broken.py:X", {})
