"""Claude Code without a terminal: `claude -p`."""

from __future__ import annotations

import json

from tests.clients.program import Program, bin_of_node, num_answers, run

PROGRAM = Program("Claude Code", node=("@anthropic-ai/claude-code",))


def test_a_task(url: str) -> None:
    before = num_answers(url)
    printed = run(bin_of_node("claude"), "-p", "What is here?", "--model", "mock", "--output-format", "json")
    answer = json.loads(printed.splitlines()[-1])
    assert answer["is_error"] is False
    assert answer["result"]
    assert num_answers(url) - before >= 2, "a tool call and an answer"
