"""The proxies of docs/security.md, as the page has them, in front of a real gateway: what they pass on and what not."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from penstock.callers.keys import create_key
from tests.support import reading
from tests.support.programs import site
from tests.support.servers import free_port
from tests.support.topologies import NotHere, make_certificate
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
NAME = "penstock.example.org"
PATH = os.environ.get("PATH", "") + ":/usr/sbin"
AROUND_NGINX = """
daemon off;
{user}
pid {directory}/pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/penstock.conf;
}}
"""


def _block(language: str) -> str:
    found = re.search(rf"<!-- {language} -->\n```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def _replaced(text: str, **changes: str) -> str:
    """With the ports and paths of this test. Each must be there."""
    for old, new in changes.items():
        assert old in text, f"{old} is not in the block"
        text = text.replace(old, new)
    return text


def _nginx(directory: Path, upstream: int, port: int, cert: Path, key: Path) -> list[str]:
    changes = {
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "/etc/ssl/penstock.pem": str(cert),
        "/etc/ssl/penstock.key": str(key),
    }
    (directory / "penstock.conf").write_text(_replaced(_block("nginx"), **changes))
    user = "user root;" if os.getuid() == 0 else ""  # else its worker could not write in `directory`
    (directory / "nginx.conf").write_text(AROUND_NGINX.format(directory=directory, user=user))
    return ["-e", str(directory / "error.log"), "-c", str(directory / "nginx.conf")]


def _haproxy(directory: Path, upstream: int, port: int, cert: Path, key: Path) -> list[str]:
    both = directory / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    changes = {
        "bind :443 ": f"bind 127.0.0.1:{port} ",
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "/etc/ssl/penstock-with-key.pem": str(both),
    }
    (directory / "haproxy.cfg").write_text(_replaced(_block("haproxy"), **changes))
    return ["-db", "-f", str(directory / "haproxy.cfg")]


CONFIGS: dict[str, Callable[[Path, int, int, Path, Path], list[str]]] = {"nginx": _nginx, "haproxy": _haproxy}


class Proxy:
    """A running proxy of the page."""

    def __init__(self, port: int, command: list[str]) -> None:
        self.port = port
        self.process = subprocess.Popen(command)

    def client(self, name: str = NAME) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}", headers={"host": name}, verify=_unchecked(), timeout=60.0
        )

    async def ask(self, head: bytes) -> bytes:
        """The status line of the answer to a request of which no body is sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=_unchecked(), server_hostname=NAME)
        writer.write(head)
        try:
            return await reader.readline()
        finally:
            writer.close()

    def is_up(self) -> bool:
        assert self.process.poll() is None, "the proxy has ended: is its configuration right?"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # of the test's own certificate
    return context


@asynccontextmanager
async def _in_front(kind: str, upstream: int, directory: Path) -> AsyncIterator[Proxy]:
    program = shutil.which(kind, path=PATH)
    if program is None:
        pytest.skip(f"no {kind} on PATH")
    try:
        cert, key = make_certificate(directory)
    except NotHere as reason:
        pytest.skip(str(reason))
    port = free_port()
    proxy = Proxy(port, [program, *CONFIGS[kind](directory, upstream, port, cert, key)])
    try:
        await wait_until(proxy.is_up, f"{kind} listens")
        yield proxy
    finally:
        proxy.process.terminate()
        proxy.process.wait()


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str, str]]:
    """The port of a gateway as the page wants it, a tenant's key and an administrator's."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    _, text = create_key(path, name="ada")
    _, admin = create_key(path, name="admin", admin=True)
    with site() as fleet:
        fleet.serve(
            *("--api-keys-file", str(path), "--allowed-hosts", NAME, "--trusted-proxies", "127.0.0.1"),
            *("--model", "mock=mock:step_ms=100"),
        )
        yield int(fleet.gateways[0].rpartition(":")[2]), text, admin


@pytest.mark.parametrize("kind", CONFIGS)
async def test_tokens_come_through_one_by_one(kind: str, behind: tuple[int, str, str], tmp_path: Path) -> None:
    upstream, key, _ = behind
    mine = {"authorization": f"Bearer {key}"}
    async with _in_front(kind, upstream, tmp_path) as proxy, proxy.client() as http:
        http.headers |= mine
        body = {"prompt": "tell me", "max_tokens": 50, "stream": True}
        async with http.stream("POST", "/v1/generate", json=body) as answer:
            assert answer.status_code == 200
            chunks = answer.aiter_bytes()
            first = await anext(chunks)
            assert b"event: token" in first
            # The first token is here while the others are still to be made.
            shown = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()
            assert shown["state"] == "running"
            rest = b"".join([chunk async for chunk in chunks])
        assert (first + rest).count(b"event: token") == 50
        whole = await reading.stream(http, str(http.base_url).rstrip("/"), prompt="again", max_tokens=3)
        assert (whole.end, len(whole.tokens)) == ("done", 3)


@pytest.mark.parametrize("kind", CONFIGS)
async def test_internal_routes_are_not_public(kind: str, behind: tuple[int, str, str], tmp_path: Path) -> None:
    upstream, key, admin = behind
    async with _in_front(kind, upstream, tmp_path) as proxy, proxy.client() as http:
        http.headers["x-api-key"] = admin
        assert (await http.get("/v1/models")).status_code == 200
        for path in ("/metrics", "/%6detrics", "/v1/admin/overview", "/v1/%61dmin/overview", "/v1/admin%2foverview"):
            answer = await http.get(path)
            assert answer.status_code == 404, path
            assert "penstock_" not in answer.text
        head = f"POST /v1/generate HTTP/1.1\r\nhost: {NAME}\r\nx-api-key: {key}\r\ncontent-length: {2**20 + 1}\r\n\r\n"
        assert (await proxy.ask(head.encode())).startswith(b"HTTP/1.1 413 ")
        for name in ("evil.example", "127.0.0.1"):
            async with proxy.client(name) as other:
                assert (await other.get("/v1/models", headers={"x-api-key": key})).status_code == 421


@pytest.mark.parametrize("kind", CONFIGS)
async def test_one_address_cannot_take_all_connections(kind: str, behind: tuple[int, str, str], tmp_path: Path) -> None:
    upstream, key, _ = behind
    body = {"prompt": "tell me", "max_tokens": 30, "stream": True}
    async with _in_front(kind, upstream, tmp_path) as proxy:
        async with proxy.client() as http:

            async def ask() -> int:
                answer = await http.post("/v1/generate", json=body, headers={"x-api-key": key})
                return answer.status_code

            statuses = await asyncio.gather(*(ask() for _ in range(90)))
        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= 64


@pytest.mark.parametrize("kind", CONFIGS)
async def test_the_gateway_gets_the_headers_of_the_proxy(kind: str, tmp_path: Path) -> None:
    """The client's own Host and address, and no Upgrade."""
    heads: list[str] = []

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head.decode().lower())
        length = re.search(rb"content-length: (\d+)", head.lower())
        await reader.readexactly(int(length[1]) if length else 0)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, _in_front(kind, port, tmp_path) as proxy, proxy.client() as http:
        for upgrade in ("websocket", "h2c"):
            spoofed = {"x-forwarded-for": "6.6.6.6", "upgrade": upgrade, "connection": "Upgrade, HTTP2-Settings"}
            answer = await http.post("/v1/generate", content=b"{}", headers=spoofed)
            assert (answer.status_code, answer.text) == (200, "ok")
    assert len(heads) == 2
    for head in heads:
        assert f"\r\nhost: {NAME}\r\n" in head
        assert re.findall(r"x-forwarded-for: (.*)\r", head) == ["127.0.0.1"]
        assert "upgrade" not in head
