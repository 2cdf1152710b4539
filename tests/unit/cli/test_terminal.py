"""What a command prints of others: escaped on a terminal, byte for byte in a file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from penstock.cli import ask, chat, keys
from penstock.cli.asides import Asides
from penstock.cli.flags import print_error
from penstock.cli.tables import dead_table, findings_table
from penstock.cli.terminal import console, echo
from penstock.log_format import printable
from penstock.transports.base import DeadJob, Finding

COMMANDS = "\x1b]52;c;cm0=\x07 \x9b2J \x1b[2J \r \x00 \x7f \u202eabc \u2066x \u2028"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
STYLES = re.compile(r"\x1b\[[0-9;]*m")


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream(request.param)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return stream


def test_an_answer_and_an_error(out: Stream) -> None:
    with redirect_stdout(out), redirect_stderr(out):
        echo(COMMANDS, is_line=False)
        echo("ünï\tcode 日本語\nnext")
        print_error(COMMANDS)
    said = out.getvalue()
    assert "ünï\tcode 日本語\nnext\n" in said
    if out.isatty():
        assert UNSAFE.findall(said) == []
        assert "\\u001b]52;c;cm0=\\u0007 \\u009b2J" in said
    else:
        assert said == f"{COMMANDS}ünï\tcode 日本語\nnext\npenstock: {COMMANDS}\n"


class Said:
    """A stream of the client, as far as it is shown."""

    text = COMMANDS
    num_resumed = 0
    answer = None

    def __iter__(self) -> Iterator[str]:
        yield COMMANDS


def test_text_of_a_model_is_escaped_on_a_terminal(out: Stream) -> None:
    said: Any = Said()
    with redirect_stdout(out):
        ask._show(COMMANDS)
        chat.Conversation(said, {}, "", Asides())._show(said)
    shown = out.getvalue()
    assert shown == (printable(COMMANDS) if out.isatty() else COMMANDS) * 2 + "\n"
    assert bool(UNSAFE.search(shown)) != out.isatty()


def test_counts_of_a_gateway_are_escaped_on_a_terminal(out: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    says = {"cancelled": COMMANDS, "being_cancelled": COMMANDS, "is_live": False}
    monkeypatch.setattr(keys, "call_gateway", lambda *_: says)
    monkeypatch.setattr("penstock.callers.keys.CHECK_INTERVAL_S", 0.0)
    with redirect_stderr(out):
        keys._cancel_all("k", "http://h", "")
    assert bool(UNSAFE.search(out.getvalue())) != out.isatty()


def test_tables(out: Stream) -> None:
    dead = DeadJob(id=COMMANDS, model=COMMANDS, deaths=1, error="[red]no markup[/]", reason=COMMANDS)
    finding = Finding(level="error", name=COMMANDS, value=COMMANDS, advice=":smile:")
    table = Table("head")
    table.add_row(COMMANDS)
    table.add_row(Text(COMMANDS, style="red"))
    with redirect_stdout(out):
        for shown in (dead_table([dead]), findings_table([finding]), table, COMMANDS):
            console().print(shown, style="bold")
    said = out.getvalue()
    assert "[red]no markup[/]" in said
    assert ":smile:" in said
    if out.isatty():
        assert STYLES.search(said), "its own colours are there"
        assert UNSAFE.findall(STYLES.sub("", said)) == []
    else:
        assert "\x9b2J" in said
        assert "\\u009b" not in said


@given(st.text())
def test_printable_escapes_unsafe_characters_only(text: str) -> None:
    shown = printable(text)
    assert UNSAFE.findall(shown) == []
    assert printable(shown) == shown
    if text.isprintable():
        assert UNSAFE.search(text) or shown == text or not text.isascii()
