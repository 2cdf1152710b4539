"""How `penstock bench` judges answers: right ones pass however they are cut, and each kind of wrong is caught."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.loadgen.scan import Scanner, make_scanner
from penstock.sse import KEEPALIVE, frame

ID = "g1.01ABC"
NASTY = ['"index":7', "data: x", "\n\n", "event: done", '\\"', "é", "[DONE]", '"content":"x"', '"error"', " fusi"]


def _token(index: int, text: str = " fusi", request_id: str = ID) -> bytes:
    data = json.dumps({"request_id": request_id, "index": index, "text": text}).encode()
    return frame("token", data, f"{request_id}/1-{index + 1}")


def _done(num: int, reason: str = "length") -> bytes:
    data = {"request_id": ID, "model": "mock", "finish_reason": reason, "usage": {"completion_tokens": num}}
    return frame("done", json.dumps(data).encode(), f"{ID}/1-{num}")


def _error() -> bytes:
    return frame("error", json.dumps({"request_id": ID, "error": {"code": "worker_lost", "message": "…"}}).encode())


def _read(chunks: Sequence[bytes], max_tokens: int, api: str = "generate", scanner: Scanner | None = None) -> Scanner:
    scanner = scanner or make_scanner(api)  # type: ignore[arg-type]
    scanner.reset(max_tokens)
    scanner.request_id = ID.encode()
    num = sum(scanner.feed(chunk) for chunk in chunks)
    scanner.finish()
    assert num == scanner.num
    return scanner


def _cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(one, len(data)) for one in at), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@given(
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=12),
    st.lists(st.integers(0, 2000), max_size=12),
    st.booleans(),
)
def test_a_right_answer_is_right_however_it_is_cut(texts: list[str], cuts: list[int], is_crlf: bool) -> None:
    data = KEEPALIVE + b"".join(_token(index, text) for index, text in enumerate(texts)) + _done(len(texts))
    if is_crlf:
        data = data.replace(b"\n", b"\r\n")
    scanner = _read(_cut(data, cuts), len(texts))
    assert (scanner.num, scanner.error, scanner.wrong) == (len(texts), "", "")


GOOD = [_token(0), _token(1), _token(2), _done(3)]


@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        ([GOOD[0], GOOD[2], GOOD[3]], "order of tokens"),
        ([GOOD[0], GOOD[1], GOOD[1], GOOD[2], GOOD[3]], "order of tokens"),
        ([GOOD[1], GOOD[0], GOOD[2], GOOD[3]], "order of tokens"),
        (GOOD[:3], "no end"),
        ([], "no end"),
        ([*GOOD, _token(3)], "an event after the end"),
        ([*GOOD, _done(3)], "an event after the end"),
        ([*GOOD[:2], _done(2)], "number of tokens"),
        ([*GOOD[:3], _done(4)], "number of tokens"),
        ([GOOD[0], _token(1, request_id="g1.02XYZ"), *GOOD[2:]], "another request's token"),
        ([*GOOD, b"event: to"], "bytes after the last event"),
        ([*GOOD[:3], b"event: done\ndata: {\n\n"], "no JSON"),
    ],
)
def test_each_kind_of_wrong_is_caught(events: list[bytes], wrong: str, is_joined: bool) -> None:
    scanner = _read([b"".join(events)] if is_joined else events, 3)
    # Which of the two comes first depends on how the bytes were cut; that there is one does not.
    assert scanner.wrong in (wrong, "two ends") if wrong == "an event after the end" else scanner.wrong == wrong


def test_more_tokens_than_asked_for_are_wrong_and_fewer_are_not_after_a_stop() -> None:
    assert _read([*GOOD[:3], _done(3, "stop")], 8).wrong == ""
    assert _read([*GOOD[:3], _done(3, "stop")], 2).wrong == "number of tokens"


def test_an_error_event_is_an_error_and_not_wrong() -> None:
    scanner = _read([GOOD[0], _error()], 3)
    assert (scanner.error, scanner.wrong) == ("event worker_lost", "")


def test_a_scanner_forgets_the_answer_before() -> None:
    scanner = _read([*GOOD, b"event: to"], 3)
    assert _read(GOOD, 3, scanner=scanner).wrong == ""


def _chunk(**more: object) -> bytes:
    return b"data: " + json.dumps({"id": "c1", "object": "x", **more}, separators=(",", ":")).encode() + b"\n\n"


def _chat(text: str, reason: str | None = None) -> bytes:
    return _chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}])


def _text(text: str, reason: str | None = None) -> bytes:
    return _chunk(choices=[{"index": 0, "text": text, "finish_reason": reason}])


END = b"data: [DONE]\n\n"


@given(
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=8), st.lists(st.integers(0, 2000), max_size=8), st.booleans()
)
def test_chat_chunks_however_they_are_cut(texts: list[str], cuts: list[int], is_counted: bool) -> None:
    usage = _chunk(choices=[], usage={"completion_tokens": len(texts)}) if is_counted else b""
    data = _chat("") + b"".join(map(_chat, texts)) + _chat("", "length") + usage + END
    scanner = _read(_cut(data, cuts), len(texts), "chat")
    assert (scanner.num, scanner.error, scanner.wrong) == (len(texts), "", "")


def test_chat_chunks_byte_by_byte() -> None:
    data = _chat("") + _chat("a") + _chat("b") + _chat("", "length") + END
    scanner = _read([data[at : at + 1] for at in range(len(data))], 2, "chat")
    assert (scanner.num, scanner.error, scanner.wrong) == (2, "", "")


def test_chunks_of_several_tokens_count_by_usage() -> None:
    usage = _chunk(choices=[], usage={"completion_tokens": 6})
    scanner = _read([_text("a b c"), _text("d e f", "length"), usage, END], 6, "completions")
    assert (scanner.num, scanner.wrong) == (6, "")
    assert _read([_text("a b c"), _text("d e f", "length"), usage, END], 7, "completions").wrong == "number of tokens"


@pytest.mark.parametrize(
    ("events", "wrong", "error"),
    [
        ([_chat("a")], "no end", ""),
        ([_chat("a"), END, _chat("b")], "an event after the end", ""),
        ([_chat("a"), b"data: {\n\n", END], "no JSON", ""),
        ([_chat("a"), _chunk(error={"code": None, "type": "server_error"})], "", "event server_error"),
        ([_chat("a"), _chat("b"), _chunk(choices=[], usage={"completion_tokens": 1}), END], "number of tokens", ""),
    ],
)
def test_wrong_chat_answers(events: list[bytes], wrong: str, error: str) -> None:
    scanner = _read(events, 2, "chat")
    assert (scanner.wrong, scanner.error) == (wrong, error)


def _whole(api: str, body: object, max_tokens: int = 3) -> Scanner:
    scanner = make_scanner(api)  # type: ignore[arg-type]
    scanner.reset(max_tokens)
    scanner.request_id = ID.encode()
    scanner.whole(json.dumps(body).encode())
    scanner.finish()
    return scanner


def test_whole_answers() -> None:
    usage = {"usage": {"completion_tokens": 3}}
    right = {"request_id": ID, "text": "a b c", "finish_reason": "length", **usage}
    assert (_whole("generate", right).num, _whole("generate", right).wrong) == (3, "")
    assert _whole("generate", right, 4).wrong == "number of tokens"
    assert _whole("generate", {**right, "request_id": "g1.02XYZ"}).wrong == "another request's answer"
    assert _whole("generate", {**right, "text": None}).wrong == "no answer"
    assert _whole("generate", []).wrong == "no answer"
    chat = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], **usage}
    assert _whole("chat", chat).wrong == ""
    assert _whole("completions", {"choices": [{"text": "a", "finish_reason": "length"}], **usage}).wrong == ""
    assert _whole("chat", {"choices": []}).wrong == "no answer"
