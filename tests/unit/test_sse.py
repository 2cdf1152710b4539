"""SSE to bytes and back: any split of the bytes decodes the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import sse

_word = st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]), min_size=1, max_size=20)
_events = st.lists(
    st.tuples(_word, st.text(st.characters(blacklist_categories=["Cs"]), max_size=40), _word), max_size=8
)


def _decode(chunks: list[bytes]) -> list[sse.ServerEvent]:
    decoder = sse.Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def _encode(event: str, data: str, event_id: str, newline: str) -> bytes:
    lines = [f"id: {event_id}", f"event: {event}", *(f"data: {line}" for line in data.split("\n")), "", ""]
    return newline.join(lines).encode()


@given(_events, st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_split_decodes_the_same(events: list[tuple[str, str, str]], cuts: list[int], newline: str) -> None:
    events = [(e.strip(), d.replace("\r", ""), i.strip()) for e, d, i in events if e.strip() and i.strip()]
    data = b"".join(_encode(*event, newline) for event in events)
    expected = [sse.ServerEvent(*event) for event in events]
    assert _decode([data]) == expected
    assert _decode(_split(data, cuts)) == expected


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=10))
def test_any_bytes_split_anyhow_never_differ(data: bytes, cuts: list[int]) -> None:
    assert _decode(_split(data, cuts)) == _decode([data])


def test_frame_decodes_to_itself() -> None:
    data = sse.frame("token", b'{"text":"a"}', "g.1/5-1") + sse.KEEPALIVE + sse.frame("done", b"{}")
    assert _decode([data]) == [
        sse.ServerEvent("token", '{"text":"a"}', "g.1/5-1"),
        sse.ServerEvent("done", "{}", "g.1/5-1"),
    ]


def test_comments_unknown_fields_and_bom_are_skipped() -> None:
    assert _decode([b"\xef\xbb\xbf: hi\nretry: 3\nfoo: bar\ndata: x\n\n"]) == [sse.ServerEvent("message", "x")]


def test_an_endless_line_is_refused() -> None:
    decoder = sse.Decoder()
    decoder.feed(b"x" * sse.MAX_LINE_BYTES)
    with pytest.raises(sse.SSEError):
        decoder.feed(b"x")


def test_an_event_that_never_ends_is_refused() -> None:
    decoder = sse.Decoder(max_bytes=1000)
    assert decoder.feed(b"data: 0123456789\n" * 62) == []
    with pytest.raises(sse.SSEError, match="event"):
        decoder.feed(b"data: 0123456789\n")
    decoder = sse.Decoder(max_bytes=1000)
    assert sum(len(decoder.feed(b"data: 0123456789\n\n")) for _ in range(200)) == 200, "each event counts alone"
