"""Answers to clients of HTTP/1.0, which do not know chunks."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from penstock.http.connection import _Unchunked

HEAD = b"HTTP/1.1 200 OK\r\ndate: now\r\n%bconnection: close\r\n\r\n"


class Wire:
    """What a transport was given."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        assert data, "a write of nothing is a system call for nothing"
        self.sent += data


def _chunks(parts: list[bytes]) -> bytes:
    return b"".join([b"%x\r\n%b\r\n" % (len(part), part) for part in parts])


@given(st.lists(st.lists(st.binary(min_size=1), max_size=3)), st.integers(0, 9), st.booleans())
def test_a_stream_is_the_same_bytes_without_their_chunks(
    writes: list[list[bytes]], num_begun: int, is_in_one: bool
) -> None:
    """Also where the beginning of the status line went ahead, and where the head comes with the first chunks."""
    wire = Wire()
    transport = _Unchunked(cast(Any, wire))
    head = HEAD % b"transfer-encoding: chunked\r\n"
    for byte in head[:num_begun]:
        transport.write(bytes([byte]))
    pieces = [head[num_begun:], *map(_chunks, writes), b"0\r\n\r\n"]
    if is_in_one:
        pieces[:2] = [b"".join(pieces[:2])]
    for piece in pieces:
        if piece:
            transport.write(piece)
    assert wire.sent == HEAD % b"" + b"".join([b"".join(parts) for parts in writes])


@given(st.binary(min_size=1))
def test_an_answer_with_a_length_is_sent_as_it_is(body: bytes) -> None:
    wire = Wire()
    transport = _Unchunked(cast(Any, wire))
    head = HEAD % b"content-length: %d\r\n" % len(body)
    transport.write(head + body)
    transport.write(body)
    assert wire.sent == head + body + body
