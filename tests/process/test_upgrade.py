"""An `Upgrade` that this server ignores, as real clients send it and as an attacker behind a real proxy does."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from penstock.callers.keys import create_key
from tests.support.programs import Site, site
from tests.support.servers import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PATH = os.environ.get("PATH", "") + ":/usr/sbin"
NGINX = shutil.which("nginx", path=PATH)
CURL = shutil.which("curl")
JAVA = shutil.which("java") if shutil.which("javac") else None
needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx on PATH")
needs_curl = pytest.mark.skipif(CURL is None, reason="no curl on PATH")
needs_java = pytest.mark.skipif(JAVA is None, reason="no JDK on PATH")
UPGRADE = b"upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABkAAQ\r\n"

# The usual lines for WebSockets, with connections to the server kept and shared by all clients.
NGINX_CONFIG = """
daemon off;
{user}
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream penstock {{ server 127.0.0.1:{upstream}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 2m;
        location / {{
            proxy_pass http://penstock;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $host;
            proxy_request_buffering {buffering};
            proxy_buffering off;
        }}
    }}
}}
"""
JAVA_CLIENT = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // its defaults: it asks for an upgrade to HTTP/2
        for (int i = 0; i < 3; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + "/v1/generate"))
                .header("content-type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("{\\"prompt\\": \\"hi\\", \\"max_tokens\\": 3}")).build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version());
        }
    }
}
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with site() as fleet:
        fleet.serve()
        yield fleet.gateways[0]


def _post(body: bytes, upgrade: bytes = UPGRADE, path: bytes = b"/v1/generate") -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (path, upgrade, len(body)) + body


LAST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


async def _answers(url: str, *requests: bytes, may_close: bool = False) -> list[tuple[int, bytes]]:
    """All that comes back on one connection for these requests and a last one, whose answer is left out.

    `may_close`: the server may close after any answer, as a proxy does that was answered before it had sent the body.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    found: list[tuple[int, bytes]] = []
    try:
        writer.write(b"".join(requests) + LAST)
        async with asyncio.timeout(60.0):
            while True:
                try:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                except asyncio.IncompleteReadError as cut:
                    if may_close and found and not cut.partial:
                        return found
                    raise
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                found.append((int(head.split()[1]), await reader.readexactly(length)))
                if b"connection: close" in head:
                    assert await reader.read() == b""
                    break
    finally:
        writer.close()
    assert found.pop()[1] == b'{"status":"alive"}'
    return found


@needs_curl
def test_curl_that_offers_http2(url: str) -> None:
    assert CURL is not None
    command = [
        CURL,
        "-s",
        "--http2",
        "-w",
        "\n%{http_code} %{http_version}",
        f"{url}/v1/generate",
        f"{url}/v1/generate",
    ]
    command += ["-H", "content-type: application/json", "-d", '{"prompt": "hi", "max_tokens": 3}']
    output = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()
    assert output.count("200 1.1") == 2
    assert output.count('"completion_tokens":3') == 2


@needs_java
def test_java_with_its_defaults(url: str, tmp_path: Path) -> None:
    assert JAVA is not None
    source = tmp_path / "Ask.java"
    source.write_text(JAVA_CLIENT)
    output = subprocess.run([JAVA, str(source), url], capture_output=True, check=True, timeout=110).stdout.decode()
    assert output.split("\n")[:3] == ["200 HTTP_1_1"] * 3


async def test_a_body_behind_an_upgrade_is_the_body(url: str) -> None:
    good = json.dumps({"prompt": "hi", "max_tokens": 3}).encode()
    smuggled = b"\r\n" * 50_000 + b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
    found = await _answers(url, _post(smuggled), _post(good))
    assert [status for status, _ in found] == [400, 200]
    assert b'"completion_tokens":3' in found[1][1]


async def test_a_worker_ignores_an_upgrade_too(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker()
        smuggled = b"\r\n" * 50_000 + b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
        found = await _answers(fleet.workers[0], _post(smuggled, path=b"/livez"))
        assert [status for status, _ in found] == [405]
        found = await _answers(fleet.workers[0], b"GET /livez HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % UPGRADE)
        assert [status for status, _ in found] == [200]


class Proxy:
    """nginx in front of one server."""

    def __init__(self, directory: Path, upstream: str, buffering: str) -> None:
        assert NGINX is not None
        directory.mkdir()
        self.port = free_port()
        config = directory / "nginx.conf"
        config.write_text(
            NGINX_CONFIG.format(
                directory=directory,
                user="user root;" if os.getuid() == 0 else "",  # else its worker could not write in `directory`
                upstream=urlsplit(upstream).port,
                port=self.port,
                buffering=buffering,
            )
        )
        self.process = subprocess.Popen([NGINX, "-e", str(directory / "error.log"), "-c", str(config)])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_up(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/livez", timeout=5.0).status_code == 200
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """A server with keys, and one of them."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    _, key = create_key(path, name="victim")
    with site() as fleet:
        fleet.serve("--api-keys-file", str(path))
        yield fleet, key


@needs_nginx
@pytest.mark.parametrize("buffering", ["on", "off"])
async def test_a_caller_without_a_key_cannot_touch_anothers_request_behind_nginx(
    guarded: tuple[Site, str], tmp_path: Path, buffering: str
) -> None:
    """Both share one connection to the server. What the attacker's body holds would be taken for the beginning of
    the next request on it, which is the victim's.
    """
    fleet, key = guarded
    proxy = Proxy(tmp_path / "nginx", fleet.gateways[0], buffering)
    try:
        await wait_until(proxy.is_up, "nginx answers")
        async with httpx2.AsyncClient(base_url=proxy.url, timeout=30.0) as victim:
            for padding in (0, 100, 40_000, 65_500, 100_000, 200_000):
                smuggled = b"\r\n" * (padding // 2) + b"GET /docs HTTP/1.1\r\nhost: localhost\r\nx-ignore: "
                found = await _answers(proxy.url, _post(smuggled), may_close=True)
                assert [status for status, _ in found] == [401]
                for _ in range(3):
                    answer = await victim.get("/v1/models", headers={"authorization": f"Bearer {key}"})
                    assert (answer.status_code, answer.json().get("object")) == (200, "list"), padding
    finally:
        proxy.stop()
