"""Codex without a terminal: `codex exec`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clients.program import Program, bin_of_node, run

PROGRAM = Program("Codex", node=("@openai/codex",))


def test_a_task(url: str, tmp_path: Path) -> None:
    printed = run(bin_of_node("codex"), "exec", "--json", "--skip-git-repo-check", "-m", "mock", "What is here?")
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert "turn.completed" in [event["type"] for event in events]
