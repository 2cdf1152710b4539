"""A conversation: each command is answered, an answer that is cut is marked, and a lost connection is shown."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from penstock.cli.asides import Asides
from penstock.cli.chat import Conversation
from penstock.client import Client
from penstock.sse import frame

URL = "http://gateway:8000"


def models() -> httpx2.Response:
    return httpx2.Response(200, json={"data": [{"id": "small"}, {"id": "large"}]})


def stream(finish_reason: str) -> bytes:
    token = frame("token", json.dumps({"request_id": "r", "index": 0, "text": "yes"}).encode(), "r/1-1")
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return token + frame("done", json.dumps({"finish_reason": finish_reason, "usage": usage}).encode())


Answer = Callable[[httpx2.Request], httpx2.Response]


@contextlib.contextmanager
def conversation(answer: Answer) -> Iterator[Conversation]:
    asides = Asides()

    def respond(request: httpx2.Request) -> httpx2.Response:
        return models() if request.url.path == "/v1/models" else answer(request)

    with Client(URL, transport=httpx2.MockTransport(respond), on_retry=asides.on_retry) as client, asides.warnings():
        yield Conversation(client, {}, "", asides)


def whole(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, content=stream("stop"), headers={"x-request-id": "r"})


def say(monkeypatch: pytest.MonkeyPatch, talk: Conversation, *lines: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return talk.run()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/system be brief", "with this system prompt"),
        ("/system", "without a system prompt"),
        ("/undo", "nothing to undo"),
        ("/reset", "the conversation is cleared"),
        ("/model large", "model large"),
        ("/model", "the server's first model"),
        ("/model fst", "the server does not serve fst; it serves small, large"),
        ("/foo", "/foo is not a command"),
        ("/help", "/undo"),
    ],
)
def test_every_command_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    with conversation(whole) as talk:
        say(monkeypatch, talk, line)
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_served_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content).get("model"))
        return whole(request)

    with conversation(answer) as talk:
        assert say(monkeypatch, talk, "/model large", "one", "/model fst", "two") == 1
    assert asked == ["large", "large"]


def test_a_person_is_greeted_with_model_and_server(capsys: pytest.CaptureFixture[str]) -> None:
    with conversation(whole) as talk:
        talk.greet("http://user:secret@gateway:8000")
    shown = capsys.readouterr().err
    assert "at http://gateway:8000, which serves small, large" in shown
    assert "secret" not in shown


def test_an_answer_that_was_cut_at_its_length_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with conversation(lambda request: httpx2.Response(200, content=stream("length"))) as talk:
        say(monkeypatch, talk, "one")
    assert "(stopped at 1 tokens; --max-tokens allows more)" in capsys.readouterr().err


def test_a_lost_connection_is_shown_at_once_and_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = frame("token", json.dumps({"request_id": "r", "index": 0, "text": "yes"}).encode(), "r/1-1")
    shown_before_the_end: list[str] = []
    num = 0

    def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal num
        num += 1
        if num == 1:
            return httpx2.Response(200, content=head, headers={"x-request-id": "r"})
        if num < 4:
            raise httpx2.ConnectError("refused")
        shown_before_the_end.append(capsys.readouterr().err)
        return httpx2.Response(200, content=stream("stop"))

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with conversation(answer) as talk:
        assert say(monkeypatch, talk, "one") == 0
    assert shown_before_the_end[0].count("(connection lost; trying again…)") == 1


def test_an_error_is_printed_before_the_request_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(200, content=b"", headers={"x-request-id": "r"})
        raise httpx2.ConnectError("refused")

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with conversation(answer) as talk:
        assert say(monkeypatch, talk, "one") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "(connection lost; trying again…)"
    assert lines[1].startswith("penstock: http://gateway:8000: ")
    assert lines[2].startswith("(could not cancel r: ")
