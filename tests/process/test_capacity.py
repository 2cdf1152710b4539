"""More connections than a process has files for: idle ones give way, the rest is refused in words, keys stay fresh."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from penstock.callers.keys import create_key, revoke_key
from tests.support import reading
from tests.support.programs import site
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(180)

NUM_FILES = 128
START = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], str, str, Path]]:
    """A server that may open few files: its URL, itself, and two keys of its file."""
    path = tmp_path / "keys.toml"
    _, good = create_key(path, name="good")
    _, revoked = create_key(path, name="revoked")
    port = free_port()
    command = [sys.executable, "-m", "penstock", "serve", "--port", str(port), "--api-keys-file", str(path)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", START.format(NUM_FILES), *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            yield f"http://127.0.0.1:{port}", process, good, revoked, path
        finally:
            process.terminate()
            process.wait()


async def test_idle_connections_do_not_block_others_and_keep_no_revoked_key_alive(
    guarded: tuple[str, subprocess.Popen[bytes], str, str, Path],
) -> None:
    url, process, good, revoked, path = guarded
    parts = urlsplit(url)

    async def models(key: str) -> int:
        async with httpx2.AsyncClient(timeout=20.0) as http:
            answer = await http.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
            return answer.status_code

    async def is_up() -> bool:
        assert process.poll() is None
        try:
            return await models(revoked) == 200
        except httpx2.TransportError:
            return False

    await wait_until_async(is_up, "the server answers", 60.0)
    held = []
    for _ in range(3 * NUM_FILES):  # more than it has files, and each has asked something
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        held.append((reader, writer))
    try:
        revoke_key(path, revoked.partition(".")[0])

        async def is_served() -> bool:
            return await models(good) == 200

        async def is_refused() -> bool:
            return await models(revoked) == 401

        await wait_until_async(is_served, "another caller is served")
        await wait_until_async(is_refused, "the revoked key is refused")
        answers = []
        for reader, _ in held:
            async with asyncio.timeout(30.0):
                answers.append((await reader.read(4096))[:12])  # a reset would raise
        assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    finally:
        for _, writer in held:
            writer.close()


async def test_a_server_full_of_streams_answers_503() -> None:
    with site() as fleet:
        fleet.serve("--max-connections", "20", "--model", "mock=mock:step_ms=50")
        url = fleet.gateways[0]
        parts = urlsplit(url)
        streams = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            body = b'{"prompt": "x", "max_tokens": 2000, "stream": true}'
            head = b"POST /v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            writer.write(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
            streams.append((reader, writer))
        for reader, _ in streams:
            await reader.readuntil(b"event: token")
        async with reading.client() as http:
            for _ in range(3):
                answer = await http.post(f"{url}/v1/generate", json={"prompt": "x" * 100_000})
                assert answer.status_code == 503
                assert answer.json()["error"]["message"] == "Too many connections (PENSTOCK_MAX_CONNECTIONS)."
                assert answer.headers["retry-after"] == "1"
                assert answer.headers["x-should-retry"] == "true"
        for _, writer in streams:
            writer.close()


async def test_clients_that_read_nothing_do_not_block_others() -> None:
    """No key is needed for the files of the docs page, which are more than the kernel's buffers hold."""
    with site() as fleet:
        fleet.serve("--max-connections", "20", "--slow-reader-s", "0.2")
        url = fleet.gateways[0]
        parts = urlsplit(url)
        held = []
        for _ in range(20):
            small = socket.socket()
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            small.connect((parts.hostname, parts.port))
            get = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: localhost\r\n\r\n"
            small.sendall(get * 3)  # those behind the first wait until it is read
            held.append(small)
        async with httpx2.AsyncClient(timeout=20.0) as http:

            async def is_served() -> bool:
                return (await http.get(f"{url}/v1/models")).status_code == 200

            await wait_until_async(is_served, "another caller is served")
        for small in held:
            small.close()
