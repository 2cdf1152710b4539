"""A client that ends its side of the connection after its request waits for the answer; one that closes does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support import reading
from tests.support.programs import site
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with site() as fleet:
        fleet.serve("--model", "mock=mock:step_ms=20")
        yield fleet.gateways[0]


async def _ask(
    url: str, version: bytes, *, stream: bool, max_tokens: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps({"prompt": "hi", "max_tokens": max_tokens, "stream": stream}).encode()
    head = b"POST /v1/generate HTTP/%b\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % (version, len(body)) + body)
    return reader, writer


def _unchunked(body: bytes) -> bytes:
    """Chunks joined; fails where they are malformed."""
    joined = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        joined, body = joined + body[:length], body[length:]
        assert body.startswith(b"\r\n")
        body = body[2:]
    return joined


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("has_begun", [False, True], ids=["at-once", "later"])
async def test_a_client_that_half_closes_gets_the_whole_answer(
    url: str, version: bytes, stream: bool, has_begun: bool
) -> None:
    reader, writer = await _ask(url, version, stream=stream, max_tokens=30)
    start = b""
    if has_begun and stream:
        start = await reader.readuntil(b"event: token")
    writer.write_eof()
    async with asyncio.timeout(60.0):
        answer = start + await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (b"transfer-encoding" in head) == (stream and version == b"1.1"), "a client of HTTP/1.0 does not know chunks"
    if stream:
        body = _unchunked(body) if version == b"1.1" else body
        assert body.endswith(b"\n\n")
        assert body.count(b"event: token") == 30
    assert b'"completion_tokens":30' in body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_request_of_a_client_that_closes_ends(url: str, stream: bool) -> None:
    _, writer = await _ask(url, b"1.1", stream=stream, max_tokens=8000)
    async with reading.client() as http:

        async def running() -> float:
            lines = (await http.get(f"{url}/metrics")).text.splitlines()
            return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("penstock_running{"))

        async def has_begun() -> bool:
            return await running() == 1

        async def has_ended() -> bool:
            return await running() == 0

        await wait_until_async(has_begun, "the request runs")
        writer.close()  # 8000 tokens would take more than two minutes
        await wait_until_async(has_ended, "the request has ended")
