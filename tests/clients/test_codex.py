"""Codex without a terminal: `codex exec`."""

from __future__ import annotations

import json

import pytest

from tests.clients.program import Program, bin_of_node, num_answers, run

PROGRAM = Program("Codex", node=("@openai/codex",))


def test_a_task(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = num_answers(url)
    # Its own provider has OpenAI's address; this is how its users name another one.
    provider = f'{{name="Penstock", base_url="{url}/v1", env_key="OPENAI_API_KEY", wire_api="responses"}}'
    options = ("-c", "model_provider=penstock", "-c", f"model_providers.penstock={provider}", "--model", "mock")
    printed = run(bin_of_node("codex"), "exec", "--json", "--skip-git-repo-check", *options, "What is here?")
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert events[-1]["type"] == "turn.completed"
    assert "agent_message" in [event["item"]["type"] for event in events if event["type"] == "item.completed"]
    assert num_answers(url) - before >= 2, "a tool call and an answer"
