"""Claude Code without a terminal: `claude -p`."""

from __future__ import annotations

import json

from tests.clients.program import Program, bin_of_node, run

PROGRAM = Program("Claude Code", node=("@anthropic-ai/claude-code",))


def test_a_task(url: str) -> None:
    printed = run(bin_of_node("claude"), "-p", "What is here?", "--model", "mock", "--output-format", "json")
    answer = json.loads(printed)
    assert answer["is_error"] is False
    assert answer["result"]
