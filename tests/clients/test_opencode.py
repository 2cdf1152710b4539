"""opencode without a terminal: `opencode run`, with the provider that its users write for such servers."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clients.program import Program, bin_of_node, num_answers, run

PROGRAM = Program("opencode", node=("opencode-ai",))


def test_a_task(url: str, tmp_path: Path) -> None:
    before = num_answers(url)
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": "any"},
        "models": {"mock": {}},
    }
    (tmp_path / "opencode.json").write_text(json.dumps({"provider": {"penstock": provider}}))
    assert run(bin_of_node("opencode"), "run", "--print-logs", "--model", "penstock/mock", "What is here?").strip()
    assert num_answers(url) - before >= 3, "a title, a tool call and an answer"
