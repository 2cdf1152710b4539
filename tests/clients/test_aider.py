"""aider edits a file, without a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients.program import ALONE, Program, run

PROGRAM = Program("aider", alone=("aider-chat",))


def test_a_message(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", os.environ["OPENAI_BASE_URL"])
    (tmp_path / "hello.py").write_text("print('hello')\n")
    printed = run(
        ALONE / "aider-chat" / "bin" / "aider", "--model", "openai/mock", "--message", "Say hello.", "--yes-always",
        "--no-git", "--no-check-update", "--no-analytics", "--no-show-model-warnings", "hello.py",
    )  # fmt: skip
    assert "Tokens: " in printed
