"""What is refused at start-up, with a message and exit status 2: a store that would lose requests, an open door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from penstock.callers.keys import create_key
from tests.support.programs import Program, site
from tests.support.servers import free_port, start_server

pytestmark = pytest.mark.timeout(90)

BROKEN = """
import asyncio

from penstock import Backend


class Broken(Backend):
    async def start(self):
        await asyncio.sleep(DELAY_S)
        raise RuntimeError("no weights")

    async def stream(self, job):
        yield job.text
"""


@pytest.fixture
def evicting() -> Iterator[str]:
    server = start_server(None, "--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru", password="hush")
    yield server.url
    server.stop()


@pytest.mark.parametrize(
    "command",
    [
        ("gateway", "--port"),
        ("gateway", "--processes", "2", "--port"),
        ("worker", "--metrics-port"),
        ("serve", "--port"),
    ],
    ids=["gateway", "gateways", "worker", "serve"],
)
def test_an_evicting_server_is_refused(evicting: str, command: tuple[str, ...]) -> None:
    program = Program(*command, str(free_port()), "--redis-url", evicting)
    try:
        assert program.wait(60.0) == 2, program.output()
        assert "penstock: Redis, memory policy: allkeys-lru" in program.output()
        assert "noeviction" in program.output()
        assert "hush" not in program.output()
        assert "Traceback" not in program.output()
    finally:
        program.close()


EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is tested is who can reach it


@pytest.mark.parametrize(
    ("command", "env", "words"),
    [
        (("serve", "--host", EVERYWHERE), {}, "--insecure"),
        (("serve", "--host", "::"), {}, "--insecure"),
        (("gateway", "--host", EVERYWHERE, "--redis-url", "redis://127.0.0.1:1"), {}, "--insecure"),
        (("gateway", "--processes", "2", "--host", EVERYWHERE, "--redis-url", "redis://127.0.0.1:1"), {}, "--insecure"),
        (("serve", "--api-keys-file", ""), {}, "--api-keys-file (PENSTOCK_API_KEYS_FILE)=''"),
        (("serve",), {"PENSTOCK_API_KEYS_FILE": ""}, "PENSTOCK_API_KEYS_FILE=''"),
        (("serve", "--insecure"), {"PENSTOCK_API_KEYS_FILE": ""}, "PENSTOCK_API_KEYS_FILE=''"),
        (("serve",), {"PENSTOCK_RATE_LIMIT_RPM": " "}, "PENSTOCK_RATE_LIMIT_RPM=''"),
    ],
)
def test_a_gateway_open_to_others_by_mistake_does_not_start(
    command: tuple[str, ...], env: dict[str, str], words: str
) -> None:
    program = Program(*command, "--port", str(free_port()), env=env)
    try:
        assert program.wait(60.0) == 2, program.output()
        assert words in program.output()
        assert "listens on" not in program.output()
        assert "Traceback" not in program.output()
    finally:
        program.close()


def test_start_up_prints_who_may_call(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    _, text = create_key(path, "Ada")
    with site() as built:
        local = built.serve()
        address = built.gateways[0].removeprefix("http://")
        said = f"API keys: OFF - everyone who can reach {address} may read and cancel every request\n"
        assert said in local.output()
        everywhere = built.serve("--host", EVERYWHERE, "--insecure")
        port = built.gateways[1].rpartition(":")[2]
        assert f"listens on http://{EVERYWHERE}:{port} " in everywhere.output()
        assert f"everyone who can reach {EVERYWHERE}:{port} may" in everywhere.output()
        assert "operators' routes are off" in everywhere.output()
        assert f"curl -N http://127.0.0.1:{port}/" in everywhere.output()
        for url, status in zip(built.gateways, (200, 403), strict=True):
            assert httpx2.get(f"{url}/v1/admin/overview").status_code == status
        with_keys = built.serve("--api-keys-file", str(path), "--host", EVERYWHERE)
        assert f"API keys: ON - 1 in {path}\n" in with_keys.output()
        assert text not in with_keys.output()


async def test_hosts_are_judged_as_they_come_over_the_wire() -> None:
    async def ask(port: int, head: bytes) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.replace(b"\n", b"\r\n") + b"connection: close\r\n\r\n")
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        return int(answer.split(b" ", 2)[1]), body.get("error", {}).get("code", "")

    with site() as built:
        built.serve("--allowed-hosts", "gw.example.org")
        port = int(built.gateways[0].rpartition(":")[2])
        for head in (
            b"GET /livez HTTP/1.1\nhost: localhost:%d\n" % port,
            b"GET /livez HTTP/1.1\nhost: [::1]:%d\n" % port,
            b"GET /livez HTTP/1.1\nHost: GW.example.org.\n",
            b"GET /livez HTTP/1.0\n",
            b"GET http://localhost/livez HTTP/1.1\nhost: evil.example\n",  # RFC 9112, 3.2.2: the target's host counts
        ):
            assert await ask(port, head) == (200, ""), head
        for head in (
            b"GET /livez HTTP/1.1\nhost: evil.example\n",
            b"GET /livez HTTP/1.0\nhost: evil.example\n",
            b"GET http://evil.example/livez HTTP/1.1\nhost: localhost\n",
            b"POST /v1/generate HTTP/1.1\nhost: evil.example:%d\ncontent-length: 0\n" % port,
        ):
            assert await ask(port, head) == (421, "misdirected_request"), head
        foreign = b"GET /v1/requests HTTP/1.1\nhost: localhost\norigin: http://evil.example\n"
        assert await ask(port, foreign) == (403, "origin_not_allowed")


@pytest.mark.parametrize("after", ["at once", "once the server is up"])
def test_a_server_whose_backend_does_not_start_has_failed(tmp_path: Path, after: str) -> None:
    """Its status is not that of a clean stop: a supervisor starts it again."""
    module = tmp_path / "broken.py"
    module.write_text(BROKEN.replace("DELAY_S", "0" if after == "at once" else "1"))
    program = Program("serve", "--port", str(free_port()), "--model", f"m={module}:Broken")
    try:
        assert program.wait(60.0) in (1, 70), program.output()
        assert "no weights" in program.output()
    finally:
        program.close()
