"""Java's own HTTP client, which offers HTTP/2 with each request: what LangChain4j and Spring AI stand on."""

from __future__ import annotations

from pathlib import Path

from tests.clients.program import Program, run

PROGRAM = Program("Java HttpClient", command=("javac", "-version"))
ASK = Path(__file__).parent / "java" / "Ask.java"


def test_chat(url: str) -> None:
    assert '"object":"chat.completion"' in run("java", ASK, f"{url}/v1/chat/completions", "false")


def test_chat_streamed(url: str) -> None:
    assert run("java", ASK, f"{url}/v1/chat/completions", "true").rstrip().endswith("data: [DONE]")
