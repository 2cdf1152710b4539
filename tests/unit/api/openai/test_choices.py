"""Several choices in one answer go through the loop that one goes through: the direct write, and the cut of a client
that reads nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, cast

import msgspec
import pytest

from penstock.api.openai.chat import ChatForm
from penstock.api.openai.choices import ChoicesResponse
from penstock.api.opened import Opened
from penstock.errors import BackendError
from penstock.event import Done, Failed, Started, Tokens, Usage
from penstock.gateway.admission import Permit
from penstock.gateway.gateway import Gateway
from penstock.gateway.keepalive import Keepalive
from penstock.gateway.relay import Reader, RelayStream, Turn
from penstock.http.connection import CLIENT
from penstock.http.edge import Call
from penstock.job import Job

JOB_ID = "g0.01K00000000000000000000000"
DONE = "[DONE]"


class Nothing:
    """Takes any call and returns None."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class OneGateway(Nothing):
    """What an answer uses of its gateway."""

    def __init__(self) -> None:
        self.metrics = self.relay = Nothing()
        self.keepalive = Keepalive(15.0, 10.0)


class OneClient:
    """The client's end of a connection: what was written at once, and what an awaited `send` brought."""

    def __init__(self, *, takes_more: bool = True) -> None:
        self.takes_more = takes_more
        self.watchers: set[Any] = set()
        self.written: list[bytes] = []
        self.sent: list[dict[str, Any]] = []
        self.may_go_on = asyncio.Event()
        self.is_aborted = False

    def is_gone(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True
        self.may_go_on.set()

    def write(self, body: bytes) -> None:
        self.written.append(body)

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if not self.takes_more and message.get("body"):
            await self.may_go_on.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Question:
    """One question with several answers, which are streams at no gateway."""

    def __init__(self, client: OneClient, num: int = 2, *, is_stream: bool = True) -> None:
        self.client = client
        self.streams = [RelayStream(Job(id=JOB_ID, model="mock", prompt="x"), None, 0.0) for _ in range(num)]
        turn = Turn()
        readers = [Reader(stream, turn) for stream in self.streams]
        for stream, reader in zip(self.streams, readers, strict=True):
            stream.readers.append(reader)
            stream.accept(Started(JOB_ID, 1, 0), 1.0)
        self.gateway = OneGateway()
        self.call = Call(JOB_ID)
        opened = Opened(cast(Gateway, self.gateway), self.call, readers, cast(Permit, Nothing()))
        form = ChatForm(JOB_ID, "mock", 1, includes_usage=True)
        answer = ChoicesResponse(opened, form, is_stream=is_stream)
        scope: Any = {CLIENT: client}
        self.answering = asyncio.create_task(answer(scope, cast(Any, None), cast(Any, client.send)))

    def tokens(self, index: int, *texts: str) -> None:
        stream = self.streams[index]
        stream.accept(Tokens(JOB_ID, 1, len(stream.tokens), tokens=texts), 1.0)

    def end(self, index: int) -> None:
        num = len(self.streams[index].tokens)
        end = Done(JOB_ID, 1, num, finish_reason="length", usage=Usage(3, num))
        self.streams[index].accept(end, 2.0)


async def turns(num: int = 5) -> None:
    for _ in range(num):
        await asyncio.sleep(0)


def chunks(body: bytes) -> list[Any]:
    """The data of each event; `DONE` as it is."""
    data = [line.removeprefix("data: ") for line in body.decode().splitlines() if line]
    return [one if one == DONE else msgspec.json.decode(one) for one in data]


def texts_of(events: Iterable[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events:
        for choice in () if event == DONE else event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return texts


async def test_tokens_of_several_choices_are_written_as_they_come_and_wake_no_task() -> None:
    client = OneClient()
    asked = Question(client)
    await turns()
    asked.tokens(0, "a")
    await turns()
    num_sent, num_written = len(client.sent), len(client.written)
    for text in "bcd":
        asked.tokens(0, text)
        asked.tokens(1, text.upper())
        await turns(2)
    assert len(client.written) == num_written + 6, "each in the turn of the loop in which it came"
    assert len(client.sent) == num_sent
    asked.end(1)
    await turns()
    asked.tokens(0, "e")
    asked.end(0)
    await asked.answering
    events = chunks(b"".join(client.written) + client.body)
    assert texts_of(events) == {0: "abcde", 1: "BCD"}
    assert [choice["finish_reason"] for event in events[-4:-2] for choice in event["choices"]] == [None, "length"]
    assert events[-1] == DONE
    assert events[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert (asked.call.outcome, asked.call.fields["completion_tokens"]) == ("ok", 8)


async def test_a_client_that_reads_none_of_several_choices_is_cut_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = OneClient(takes_more=False)
    asked = Question(client)
    await turns()
    asked.tokens(1, "a")
    await turns()
    (health,) = asked.gateway.keepalive.watched
    for now in (100.0, 109.0, 111.0):
        assert not client.is_aborted
        health.check(now, 15.0, 10.0)
    with caplog.at_level(logging.WARNING):
        await asked.answering
    assert [record.message for record in caplog.records] == ["cut: the client does not read (PENSTOCK_SLOW_READER_S)"]
    assert asked.call.outcome == "disconnected"
    assert not asked.gateway.keepalive.watched


async def test_a_choice_that_fails_ends_the_stream_of_all_without_done() -> None:
    client = OneClient()
    asked = Question(client, 3)
    await turns()
    asked.tokens(0, "a")
    asked.end(0)
    await turns()
    error = BackendError("It broke.")
    asked.streams[2].accept(Failed.of(JOB_ID, 1, 0, error), 2.0)
    await asked.answering
    events = chunks(b"".join(client.written) + client.body)
    assert events[-1]["error"]["message"] == "It broke."
    assert DONE not in events
    assert asked.call.outcome == "backend_error"


async def test_several_whole_choices_wake_their_answer_at_their_ends_only() -> None:
    client = OneClient()
    asked = Question(client, is_stream=False)
    await turns()
    for index in (1, 0):
        asked.tokens(index, "a", "b")
        assert all(reader.is_for_end for stream in asked.streams for reader in stream.readers)
        asked.end(index)
        await turns()
    await asked.answering
    whole = msgspec.json.decode(client.body)
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["ab", "ab"]
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_several_choices_ends_their_answer(is_stream: bool) -> None:
    client = OneClient()
    asked = Question(client, is_stream=is_stream)
    await turns()
    asked.tokens(0, "a")
    asked.end(0)
    await turns()
    client.is_aborted = True
    for wake in list(client.watchers):
        wake()
    await asked.answering
    assert asked.call.outcome == "disconnected"
