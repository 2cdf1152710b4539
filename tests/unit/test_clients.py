"""What `make test-clients` reports: why a program did not run, and the table of docs/clients.md."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.clients.program import Missing, Program
from tests.clients.report import Row, build, phrase, quote, table
from tests.conftest import pytest_ignore_collect

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (Program("x", python=("no-such-package",)), "the Python package no-such-package is not installed"),
        (Program("x", alone=("no-such-package",)), "the Python package no-such-package is not installed"),
        (Program("x", command=("no-such-command", "--version")), "no-such-command is not on PATH"),
        (Program("x", command=("false", "--version")), "false --version ended with 1"),
    ],
)
def test_a_program_that_cannot_run_has_a_reason(program: Program, reason: str) -> None:
    with pytest.raises(Missing, match=f"^{reason}"):
        program.versions()


def test_a_program_that_can_run_has_its_versions() -> None:
    found = Program("x", python=("pytest",), command=(sys.executable, "--version")).versions()
    assert found == {"pytest": pytest.__version__, sys.executable: ".".join(map(str, sys.version_info[:3]))}


def test_the_table_has_a_row_for_each_program() -> None:
    ran = Row({"one": "1.0"}, ran=["chat", "tools (a)", "tools (b)"], cannot=["batches: 404"])
    made = build({"One": ran, "two": Row(failed=["chat"]), "Three": Row(skipped="node is not installed")})
    lines = table(made).splitlines()
    assert lines[0].endswith("3 programs, 1 with a failure, 1 skipped.")
    assert lines[-3:] == [
        "| One | one 1.0 | chat, tools (a, b) | batches: 404 |",
        "| Three | – | skipped: node is not installed | – |",
        "| two | – | –; **failed**: chat | – |",
    ]


def test_the_table_replaces_what_is_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- clients:begin -->\nold\n<!-- clients:end -->\nafter\n")
    made = build({"One": Row(ran=["chat"])})
    quoted = quote(made, page)
    assert quoted == f"before\n<!-- clients:begin -->\n{table(made)}<!-- clients:end -->\nafter\n"


def test_the_phrase_of_a_test_is_its_name() -> None:
    assert phrase("test_a_chat_streamed") == "a chat streamed"
    assert phrase("test_tools[openai/mock]") == "tools (openai/mock)"


@pytest.mark.parametrize(
    ("asked", "is_left_out"),
    [(["tests"], True), (["tests/unit"], True), (["tests/clients"], None), (["tests/clients/test_x.py::test_y"], None)],
)
def test_they_are_collected_only_where_they_are_asked_for(asked: list[str], is_left_out: bool | None) -> None:
    config: Any = SimpleNamespace(rootpath=ROOT, invocation_params=SimpleNamespace(dir=ROOT), args=asked)
    assert pytest_ignore_collect(ROOT / "tests" / "clients", config) is is_left_out
    assert pytest_ignore_collect(ROOT / "tests" / "unit", config) is None
