"""How bytes become requests: an Upgrade, lengths, chunks, pieces, what follows, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.http.connection import GatewayConnection
from penstock.http.http1 import MAX_HELD_BYTES, MIN_PIECE_BYTES, SPARE_BYTES, Http1Connection
from penstock.http.listener import OpenConnections
from tests.support.http1 import Peer
from tests.support.waiting import wait_until

UPGRADES = [
    b"upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABkAAQ\r\n",
    b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIA==\r\nsec-websocket-version: 13\r\n",
    b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
    b"UPGRADE: HTTP/2.0, SHTTP/1.3, IRC/6.9, RTA/x11\r\nCONNECTION: keep-alive, UPGRADE\r\n",
    b"uPgRaDe: \x7e\xff garbage ;=,\r\ncOnNeCtIoN: uPgRaDe\r\n",
    b"Upgrade:\r\nConnection: upgrade\r\n",
    b"Upgrade: a\r\nUpgrade: b\r\nConnection: upgrade\r\nConnection: close, upgrade\r\n".replace(b"close, ", b""),
    b"Upgrade: h2c\r\n",
    b"Connection: upgrade\r\n",
]
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"


def sized(body: bytes) -> bytes:
    return b"content-length: %d\r\n\r\n%b" % (len(body), body)


def chunked(body: bytes) -> bytes:
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
    return b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-trailer: a\r\n\r\n"


def posts(upgrade: bytes, framed: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST /post HTTP/%b\r\nhost: x\r\n%b%b" % (version, upgrade, framed)


@pytest.fixture(params=[GatewayConnection, Http1Connection], ids=["gateway", "worker"])
async def peer(request: pytest.FixtureRequest) -> Peer:
    return Peer(request.param)


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("frame", [sized, chunked])
async def test_an_upgrade_changes_nothing_however_the_bytes_are_cut(upgrade: bytes, frame: object) -> None:
    assert callable(frame)
    body = b"\r\n\r\n" + SMUGGLED
    data = posts(upgrade, frame(body)) + NEXT
    for cut in range(len(data)):
        peer = Peer()
        await peer.send([data[:cut], data[cut:]] if cut else [data])
        await peer.rest()
        assert peer.requests == [("POST", "/post", body.decode()), ("GET", "/next", "")], cut
        assert peer.statuses == [200, 200]
        peer.close()


@pytest.mark.parametrize("frame", [sized, chunked])
async def test_an_upgrade_a_byte_at_a_time(peer: Peer, frame: object) -> None:
    assert callable(frame)
    data = posts(UPGRADES[0], frame(SMUGGLED)) * 2 + NEXT
    await peer.send(data[i : i + 1] for i in range(len(data)))
    await peer.rest()
    assert [path for _, path, _ in peer.requests] == ["/post", "/post", "/next"]


@pytest.mark.parametrize("frame", [sized, chunked])
@pytest.mark.parametrize("piece", [100, 4096, 65536, 1 << 20])
async def test_many_empty_lines_in_front_of_a_request_in_a_body(peer: Peer, frame: object, piece: int) -> None:
    """The parser skips empty lines in front of a request, so they place it behind any limit of a read."""
    assert callable(frame)
    body = b"\r\n" * 50_000 + SMUGGLED
    data = posts(UPGRADES[0], frame(body)) + NEXT
    await peer.send(data[i : i + piece] for i in range(0, len(data), piece))
    await peer.rest()
    assert peer.requests == [("POST", "/post", body.decode()), ("GET", "/next", "")]


async def test_a_body_that_arrives_late(peer: Peer) -> None:
    head, _, body = posts(UPGRADES[0], sized(SMUGGLED)).partition(b"\r\n\r\n")
    await peer.send([head + b"\r\n\r\n"])
    await peer.rest(50)
    assert peer.requests == []
    await peer.send([body, NEXT])
    await peer.rest()
    assert [path for _, path, _ in peer.requests] == ["/post", "/next"]


@pytest.mark.parametrize("size", [1, 32])
async def test_a_body_in_tiny_pieces_is_refused(peer: Peer, size: int) -> None:
    num = SPARE_BYTES // (MIN_PIECE_BYTES - size) // 2  # twice as many fit, but for those that a read cuts in two
    piece = b"%x\r\n%b\r\n" % (size, b"a" * size)
    head = posts(b"", b"transfer-encoding: chunked\r\n\r\n")
    await peer.send(
        [head + piece * num + b"0\r\n\r\n", head + b"10000\r\n" + b"a" * 0x10000 + b"\r\n" + piece * num * 3]
    )
    await peer.rest()
    assert peer.requests == [("POST", "/post", "a" * size * num)]
    assert peer.statuses == [200, 400]
    peer.close()


async def test_a_large_body_in_small_pieces_is_read(peer: Peer) -> None:
    piece = b"%x\r\n%b\r\n" % (MIN_PIECE_BYTES, b"a" * MIN_PIECE_BYTES)
    await peer.send([posts(b"", b"transfer-encoding: chunked\r\n\r\n") + piece * 16_384 + b"0\r\n\r\n"])
    await peer.rest()
    assert [len(body) for _, _, body in peer.requests] == [2**20]


async def test_an_upgrade_without_a_body_and_one_in_a_later_request(peer: Peer) -> None:
    get = b"GET /get HTTP/1.1\r\nhost: x\r\n%b\r\n" % UPGRADES[1]
    await peer.send([get + NEXT + posts(UPGRADES[0], sized(SMUGGLED)) + get + NEXT])
    await peer.rest(50)
    assert [path for _, path, _ in peer.requests] == ["/get", "/next", "/post", "/get", "/next"]


async def test_an_upgrade_that_expects_100(peer: Peer) -> None:
    await peer.send([posts(UPGRADES[0] + b"expect: 100-continue\r\n", sized(SMUGGLED))[: -len(SMUGGLED)]])
    await peer.rest()
    assert peer.wire.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    await peer.send([SMUGGLED + NEXT])
    await peer.rest()
    assert [path for _, path, _ in peer.requests] == ["/post", "/next"]


async def test_an_upgrade_in_http_1_0_is_ignored_and_the_connection_closes(peer: Peer) -> None:
    await peer.send([posts(UPGRADES[0], sized(SMUGGLED), b"1.0") + NEXT])
    await peer.rest()
    assert peer.requests == [("POST", "/post", SMUGGLED.decode())]
    assert peer.wire.is_closing()


async def test_an_upgrade_with_close_is_the_last_request(peer: Peer) -> None:
    await peer.send([posts(b"connection: close, upgrade\r\nupgrade: h2c\r\n", sized(SMUGGLED)) + NEXT])
    await peer.rest()
    assert peer.requests == [("POST", "/post", SMUGGLED.decode())]
    assert peer.wire.is_closing()


@pytest.mark.parametrize(
    "framing",
    [
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n" + SMUGGLED,
        b"content-length: +5\r\n\r\n" + SMUGGLED,
        b"transfer-encoding: chunked\r\n\r\nz\r\n" + SMUGGLED,
        b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"content-length: 1\r\n 0\r\n\r\n" + SMUGGLED,
    ],
)
@pytest.mark.parametrize("upgrade", [b"", UPGRADES[0]], ids=["plain", "upgrade"])
async def test_a_length_that_is_unclear_is_refused_with_or_without_an_upgrade(
    peer: Peer, upgrade: bytes, framing: bytes
) -> None:
    await peer.send([posts(upgrade, framing)])
    await peer.rest()
    assert peer.requests == []
    assert peer.statuses == [400]
    assert peer.wire.has_ended


PLAIN = b"\r\n1\r\na\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "codings",
    [
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: identity\r\n",
        b"transfer-encoding: chunked;q=1\r\n",
        b"transfer-encoding: xchunked\r\n",
    ],
)
@pytest.mark.parametrize("upgrade", [b"", UPGRADES[0]], ids=["plain", "upgrade"])
async def test_a_transfer_coding_that_is_not_decoded_is_refused(peer: Peer, upgrade: bytes, codings: bytes) -> None:
    await peer.send([posts(upgrade, codings + PLAIN) + NEXT])
    await peer.rest()
    assert peer.requests == []
    assert peer.statuses == [415]
    assert b'"code":"unsupported_media_type"' in peer.wire.sent
    assert b"connection: close" in peer.wire.sent
    assert peer.wire.has_ended


async def test_chunked_in_any_case_is_decoded(peer: Peer) -> None:
    await peer.send([posts(b"", b"Transfer-Encoding: Chunked \r\n" + PLAIN) + NEXT])
    await peer.rest()
    assert peer.requests == [("POST", "/post", "a"), ("GET", "/next", "")]


@pytest.mark.parametrize("upgrade", [b"", UPGRADES[0]], ids=["plain", "upgrade"])
@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        (b"/a?b=c", "x", "/a"),
        (b"//evil.example/a", "x", "//evil.example/a"),
        (b"http://evil.example/a?b=c", "evil.example", "/a"),
        (b"HTTPS://evil.example:8000/a", "evil.example:8000", "/a"),
        (b"http://[::1]:80/a", "[::1]:80", "/a"),
        (b"http://evil.example", "evil.example", "/"),
        (b"http://evil.example?b=c", "evil.example", "/"),
    ],
)
async def test_the_host_of_an_absolute_target_replaces_the_header(
    peer: Peer, upgrade: bytes, target: bytes, host: str, path: str
) -> None:
    await peer.send([b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (target, upgrade) + NEXT])
    await peer.rest()
    assert [one["path"] for one in peer.seen] == [path, "/next"]
    assert [value for name, value in peer.seen[0]["headers"] if name == "host"] == [host]


async def test_the_host_of_an_absolute_target_needs_no_header_in_http_1_0(peer: Peer) -> None:
    await peer.send([b"GET http://evil.example/ HTTP/1.0\r\n\r\n"])
    await peer.rest()
    assert peer.seen[0]["headers"] == [("host", "evil.example")]


@pytest.mark.parametrize(
    "target", [b"http:///a", b"http://:80/a", b"http://x@evil.example/a", b"ftp://x/a", b"http:a", b"x/a", b"*a"]
)
async def test_a_target_whose_host_is_unclear_is_refused(peer: Peer, target: bytes) -> None:
    await peer.send([b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % target + NEXT])
    await peer.rest()
    assert peer.requests == []
    assert peer.statuses == [400]
    assert peer.wire.has_ended


async def test_connect_is_refused_and_nothing_behind_it_is_read(peer: Peer) -> None:
    await peer.send([b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n" + SMUGGLED, SMUGGLED])
    await peer.rest()
    assert peer.requests == []
    assert peer.statuses == [405]
    assert peer.wire.has_ended


async def test_a_trailer_is_not_a_header(peer: Peer) -> None:
    """It would be one that a proxy has not judged: a key, an address, a host."""
    trailers = b"0\r\nauthorization: Bearer stolen\r\nhost: y\r\nx-forwarded-for: 127.0.0.1\r\n\r\n"
    await peer.send([posts(b"", b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n" + trailers) + NEXT])
    await peer.rest()
    assert peer.seen[0]["headers"] == [("host", "x"), ("transfer-encoding", "chunked")]
    assert peer.statuses == [200, 200]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nHOST: b\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nhost:\r\n\r\n", 200),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", 400),
    ],
)
async def test_versions_and_hosts(peer: Peer, head: bytes, status: int) -> None:
    await peer.send([head])
    await peer.rest()
    assert peer.statuses == [status]
    assert (status == 400) == peer.wire.has_ended


@pytest.mark.parametrize("length", [b"", b"content-length: 5\r\n"])
async def test_http_1_0_with_a_transfer_coding_is_refused_and_closed(peer: Peer, length: bytes) -> None:
    """RFC 9112, 6.1: its framing is faulty, even with a length, as a proxy of that version does not know the coding."""
    chunks = b"transfer-encoding: chunked\r\n" + length + b"\r\n0\r\n\r\n"
    await peer.send([b"POST / HTTP/1.0\r\nhost: x\r\n" + chunks + NEXT])
    await peer.rest()
    assert peer.requests == []
    assert peer.statuses == [400]
    assert peer.wire.has_ended


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nx", b"GET /", b"\r\n"])
async def test_a_head_without_an_end_is_refused_before_it_is_large(peer: Peer, start: bytes) -> None:
    fill = b"\r\n" if start in (b"", b"\r\n") else b"a"
    await peer.send([start, *[fill * 4096] * 40])
    assert peer.statuses == [400]
    assert peer.wire.has_ended


@pytest.mark.parametrize("part", [b"1;" + b"e" * 200_000, b"0\r\nx: " + b"t" * 200_000])
async def test_a_chunk_or_a_trailer_that_never_ends(peer: Peer, part: bytes) -> None:
    await peer.send([posts(b"", b"transfer-encoding: chunked\r\n\r\n") + part])
    await peer.rest()
    assert peer.requests == []
    assert peer.statuses == [400]


async def test_a_fault_behind_a_good_request_is_answered_after_it(peer: Peer) -> None:
    peer.gate.clear()
    await peer.send([NEXT + b"\x00 nonsense\r\n\r\n"])
    await peer.rest()
    assert peer.wire.sent == b""
    peer.gate.set()
    await peer.rest()
    assert peer.statuses == [200, 400]
    assert peer.wire.has_ended


async def test_requests_that_wait_are_held_unparsed_and_then_answered(peer: Peer) -> None:
    """What a client pipelines costs its own bytes and no more, and reading stops while enough of it is here."""
    peer.gate.clear()
    await peer.send([NEXT])
    many = NEXT * 6000
    tracemalloc.start()
    try:
        await peer.send([many])
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 2 * len(many)
    assert peer.wire.is_paused == (len(many) > MAX_HELD_BYTES)
    peer.gate.set()
    for _ in range(7000):
        await peer.rest(5)
        if len(peer.seen) == 6001:
            break
    assert peer.statuses == [200] * 6001
    assert not peer.wire.is_paused


async def test_a_client_that_half_closes_gets_all_its_answers(peer: Peer) -> None:
    peer.gate.clear()
    await peer.send(
        [NEXT + posts(b"", sized(b"abc")) + NEXT + b"POST /half HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nab"]
    )
    assert peer.protocol.eof_received() is True
    peer.gate.set()
    await peer.rest(50)
    assert [path for _, path, _ in peer.requests] == ["/next", "/post", "/next"]
    assert peer.statuses == [200] * 3
    assert peer.wire.is_closing()


async def test_a_client_that_ended_its_side_is_probed_with_the_first_bytes_of_its_answer() -> None:
    peer = Peer()
    peer.gate.clear()
    await peer.send([NEXT])
    assert peer.protocol.eof_received()
    assert peer.wire.sent == b"H"
    await asyncio.sleep(0.05)
    assert peer.wire.sent == b"HTTP/1.1 "[: len(peer.wire.sent)]
    assert len(peer.wire.sent) >= 2
    peer.gate.set()
    await peer.rest()
    assert peer.statuses == [200]
    assert peer.wire.is_closing()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", posts(b"", sized(b"abc"))[:-1]])
async def test_a_client_that_closes_before_its_request_is_whole_is_gone(peer: Peer, sent: bytes) -> None:
    await peer.send([sent])
    assert not peer.protocol.eof_received()


async def test_an_idle_connection_gives_way_when_the_server_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    class Few(GatewayConnection):
        max_connections = 3

    clock = [100.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
    state = OpenConnections()
    busy, idle, later = (Peer(Few, state) for _ in range(3))
    busy.gate.clear()
    await busy.send([NEXT])
    await idle.send([NEXT])
    clock[0] = 100.5
    await later.send([NEXT])
    refused = Peer(Few, state)  # none has been idle for long
    assert refused.statuses == [503]
    assert refused.wire.has_ended
    refused.close()
    clock[0] = 101.2
    newcomer = Peer(Few, state)
    assert [one.wire.is_closing() for one in (busy, idle, later, newcomer)] == [False, True, False, False]
    await newcomer.send([NEXT])
    busy.gate.set()
    await busy.rest()
    assert busy.statuses == newcomer.statuses == [200]
    for one in (busy, later, newcomer):
        one.close()
    await busy.rest()
    assert not state.idle
    assert not state.connections


async def test_a_client_that_does_not_read_is_cut_off_or_gives_way() -> None:
    class Impatient(GatewayConnection):
        stalled_s = 0.02

    peer = Peer(Impatient)
    await peer.send([NEXT])
    peer.protocol.pause_writing()
    peer.protocol.resume_writing()
    await asyncio.sleep(0.05)
    assert not peer.wire.is_closing()
    peer.protocol.pause_writing()
    await wait_until(peer.wire.is_closing, "it is cut off")


def _pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        yield data[start:end]


ONE = st.tuples(st.sampled_from([b"", *UPGRADES]), st.sampled_from([sized, chunked]), st.binary(max_size=200))


@given(requests=st.lists(ONE, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 5000), max_size=8))
def test_any_requests_in_any_pieces_are_those_that_the_client_framed(
    requests: list[tuple[bytes, object, bytes]], cuts: list[int]
) -> None:
    async def run() -> None:
        peer = Peer()
        bodies = [body.hex().encode() + b"\r\n" + SMUGGLED for _, _, body in requests]
        data = b"".join(
            posts(upgrade, frame(body))  # type: ignore[operator]
            for (upgrade, frame, _), body in zip(requests, bodies, strict=True)
        )
        await peer.send(_pieces(data, cuts))
        await peer.rest(50)
        assert peer.requests == [("POST", "/post", body.decode()) for body in bodies]
        peer.close()
        await peer.rest()

    asyncio.run(run())
