"""What every program of this ring shares: a default `penstock serve`, an environment of its own, and the report.

A module has a `PROGRAM`, and its tests are skipped where that cannot run. The report lists tests by their names. A test
that shows what a program cannot do has the mark `cannot`, with the reason for the report.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import report
from tests.clients.program import Missing, Program
from tests.support.programs import Site, site
from tests.support.waiting import PATIENCE

LIMIT_S = 300  # of one test: some of the programs are as large as a browser

# No program looks for news, sends statistics, or reads a list of prices: there may be no network.
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "CI": "true",
    "DISABLE_AUTOUPDATER": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_COLOR": "1",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@pytest.fixture(scope="session")
def server() -> Iterator[Site]:
    """`penstock serve` as it is without a setting."""
    with site() as built:
        built.serve()
        yield built


@pytest.fixture
def url(server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the server, which the usual variables name too; the home and the working directory are empty."""
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "ANTHROPIC_", "CLAUDE", "CODEX_"))]:
        monkeypatch.delenv(name)
    base = server.gateways[0]
    keys = {"OPENAI_BASE_URL": f"{base}/v1", "OPENAI_API_KEY": "any", "ANTHROPIC_BASE_URL": base}
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {**keys, "ANTHROPIC_API_KEY": "any", "HOME": str(home), "PWD": str(tmp_path), **QUIET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return base


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────────

ROWS: dict[str, report.Row] = defaultdict(report.Row)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients-report", type=Path, help="write what was run, with which versions, as JSON")


def _program(item: pytest.Item) -> Program:
    program = getattr(item, "module", None) and getattr(item.module, "PROGRAM", None)  # type: ignore[attr-defined]
    assert isinstance(program, Program), f"{item.path.name} has no PROGRAM"
    return program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # those of other projects
            item.add_marker(pytest.mark.timeout(LIMIT_S * PATIENCE), append=False)
            row = ROWS[_program(item).title]
            try:
                row.versions = _program(item).versions()
            except Missing as missing:
                row.skipped = str(missing)
                item.add_marker(pytest.mark.skip(reason=row.skipped))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    made = yield
    if item.path.parent == Path(__file__).parent:
        _note(item, made)
    return made


def _note(item: pytest.Item, made: pytest.TestReport) -> None:
    row, cannot = ROWS[_program(item).title], item.get_closest_marker("cannot")
    text = cannot.args[0] if cannot else report.phrase(item.name)
    if made.failed and text not in row.failed:
        row.failed.append(text)
    elif made.when == "call" and made.passed:
        (row.cannot if cannot else row.ran).append(text)
    elif made.skipped and not row.skipped:
        row.cannot.append(f"{text} (not run: {made.longrepr[2] if isinstance(made.longrepr, tuple) else 'skipped'})")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not any(row.ran for row in ROWS.values()) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if path := session.config.getoption("--clients-report"):
        for row in ROWS.values():
            for texts in (row.ran, row.cannot, row.failed):
                texts.sort()  # the order of the tests is random
        report.write(report.build(ROWS), path)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("programs of other projects")
    terminalreporter.write(report.table(report.build(ROWS)))
    if not any(row.ran for row in ROWS.values()):
        terminalreporter.write_line("FAILED: nothing was run")
