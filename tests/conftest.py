"""What every ring of the tests shares: fixtures, and how tests are run (docs/contributing.md)."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from hypothesis import settings

from tests.support.servers import Servers
from tests.support.waiting import PATIENCE

settings.register_profile("penstock", deadline=None)  # how long an example takes says nothing on a busy machine
settings.register_profile("fixed", deadline=None, derandomize=True)  # CI judges a change, not the luck of the draw
settings.register_profile("deep", deadline=None, max_examples=3000)  # for -m hypothesis --hypothesis-profile=deep
settings.load_profile("penstock")

LOCKS = pytest.StashKey[tuple[int, int]]()
FOLDER = "penstock_locks"
# Longest first, so that no process is left with one of them at the end; the many short tests fill the gaps.
RINGS = ("clients", "models", "process", "conformance", "contract", "simulation", "unit")


# ── fixtures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Each client of httpx2 reads the certificates that its machine trusts, which takes 40 ms of CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpcore2, "default_ssl_context", functools.cache(httpcore2.default_ssl_context))
        yield


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Every real server present, by name, each in a process of its own for the whole session."""
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def redis_url(servers: Servers) -> str:
    """A real server, shared by the session: use a pool or ids of your own."""
    return servers.get().url


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A test that configures logging leaves no handler behind that writes to a closed stream."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


# ── what is run, and in which order ──────────────────────────────────────────────────────────────────────────────────


def _ring(item: pytest.Item) -> str:
    return item.path.relative_to(item.config.rootpath / "tests").parts[0]


def _is_real(item: pytest.Item) -> bool:
    """Whether it starts servers or processes."""
    if _ring(item) not in ("contract", "simulation", "unit"):
        return True
    store = item.callspec.params.get("store") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
    if store:
        return store not in ("memory", "model")
    return bool({"servers", "topologies", "redis_url", "real"} & set(getattr(item, "fixturenames", ())))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Programs of other projects run only where they are asked for: `make test-clients` installs them first."""
    if collection_path != config.rootpath / "tests" / "clients":
        return None
    asked = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    return None if any(path.is_relative_to(collection_path) for path in asked) else True


def pytest_itemcollected(item: pytest.Item) -> None:
    if _is_real(item):
        item.add_marker("real")
    limit = item.get_closest_marker("timeout")
    limit_s = limit.args[0] if limit else float(item.config.getini("timeout"))
    item.add_marker(pytest.mark.timeout(limit_s * PATIENCE), append=False)


@pytest.hookimpl(trylast=True)  # after pytest-randomly: the order stays random within a ring
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: RINGS.index(_ring(item)))


# ── tests that measure run alone ─────────────────────────────────────────────────────────────────────────────────────
# Of several processes (-n 4) all hold a shared lock while they run a test; for one marked `alone` it is exclusive.
# Before it, each passes a gate, which an exclusive one keeps while it waits, so that no new one overtakes it.


def pytest_configure(config: pytest.Config) -> None:
    folder = getattr(config, "workerinput", {}).get(FOLDER)
    if folder:
        gate, room = (os.open(os.path.join(folder, name), os.O_CREAT | os.O_RDWR) for name in ("gate", "room"))
        config.stash[LOCKS] = gate, room


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="penstock-tests-")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist, in the process that starts the others."""
    node.workerinput[FOLDER] = _folder().name


def pytest_unconfigure() -> None:
    if _folder.cache_info().currsize:
        _folder().cleanup()


@contextlib.contextmanager
def _locked(locks: tuple[int, int], is_alone: bool) -> Iterator[None]:
    gate, room = locks
    fcntl.flock(gate, fcntl.LOCK_EX)
    fcntl.flock(room, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
    fcntl.flock(gate, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(room, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-timeout: waiting is not the test's time
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    locks = item.config.stash.get(LOCKS, None)
    with _locked(locks, item.get_closest_marker("alone") is not None) if locks else contextlib.nullcontext():
        return (yield)


# ── failures are shown as they come: a run that is broken off has then shown them ────────────────────────────────────


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and REPORTER:
        REPORTER[0].write_line(f"\n{report.nodeid} ({report.when})\n{report.longreprtext}\n")


REPORTER: list[Any] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not hasattr(session.config, "workerinput"):
        REPORTER.append(reporter)
