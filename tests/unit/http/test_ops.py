"""The routes for operators, in a gateway's kind of app and in a worker's; their server; and the docs page."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from html.parser import HTMLParser
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp

from penstock.http.docs_page import docs_routes
from penstock.http.ops import build_app, routes, serve_ops
from penstock.metrics import Metrics
from penstock.metrics.lag import watch_lag
from penstock.version import __version__
from tests.support.serving import serving
from tests.support.waiting import wait_until


def gateway_app(metrics: Metrics, ready: Callable[[], list[str]], info: Callable[[], dict[str, Any]]) -> ASGIApp:
    app = FastAPI()
    app.include_router(routes(metrics, ready, info))
    return app


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture(params=[gateway_app, build_app], ids=["gateway", "worker"])
async def client(request: pytest.FixtureRequest, reasons: list[str]) -> AsyncIterator[httpx2.AsyncClient]:
    app = request.param(Metrics(models=["mock"]), lambda: reasons, lambda: {"id": "w1", "num_jobs": 3})
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://ops") as client:
        yield client


async def test_alive(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert answer.headers["cache-control"] == "no-store"


async def test_ready_or_why_not(client: httpx2.AsyncClient, reasons: list[str]) -> None:
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    reasons += ["the store cannot be reached", "no worker is alive"]
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"] == {
        "message": "Not ready: the store cannot be reached; no worker is alive.",
        "type": "server_error",
        "code": "unavailable",
        "param": None,
    }


@pytest.mark.parametrize("build", [routes, build_app])
async def test_a_ready_process_tells_what_it_cannot_do(build: Any) -> None:
    reasons: list[str] = []
    limits = ["no engine is up for chat"]
    made = build(Metrics(), lambda: reasons, dict, degraded=lambda: limits)
    app: Any = made
    if build is routes:
        app = FastAPI()
        app.include_router(made)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://ops") as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "reasons": limits})
        assert (await client.get("/healthz")).json() == {"status": "degraded", "reasons": limits}
        reasons.append("shutting down")
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).json()["reasons"] == ["shutting down", *limits]


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_health_as_other_servers_have_it_is_readiness(
    client: httpx2.AsyncClient, reasons: list[str], path: str
) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    reasons.append("no worker is alive")
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["message"] == "Not ready: no worker is alive."


async def test_the_version_is_an_object(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": __version__}


async def test_health_is_a_summary(client: httpx2.AsyncClient, reasons: list[str]) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok", "reasons": [], "id": "w1", "num_jobs": 3}
    reasons.append("x")
    answer = await client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"


async def test_metrics_are_served(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE penstock_inter_token_latency_seconds histogram" in answer.text
    modern = await client.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert modern.text.endswith("# EOF\n")


async def test_an_unknown_route_of_the_workers_app_is_404() -> None:
    app = build_app(Metrics(), list, dict)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://ops") as client:
        answer = await client.get("/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────


def _listener() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


async def test_the_server_serves_and_ends() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    server = await serve_ops(build_app(Metrics(), list, dict), _listener())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/livez")).status_code == 200
    await server.close()
    await server.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_every_answer_of_the_server_has_nosniff() -> None:
    server = await serve_ops(build_app(Metrics(), list, dict), _listener())
    async with httpx2.AsyncClient() as client:
        for path in ("/livez", "/metrics", "/nothing"):
            answer = await client.get(f"http://127.0.0.1:{server.port}{path}")
            assert answer.headers["x-content-type-options"] == "nosniff"
    await server.close()


# ── HEAD ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def heads(port: int, path: str, method: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, as they come over the wire."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


async def check_head(port: int, path: str, status: int = 200) -> None:
    got = await heads(port, path, "GET")
    head = await heads(port, path, "HEAD")
    assert (got[0], head[0], head[2]) == (status, status, b""), path
    assert got[2]
    assert got[1].keys() == head[1].keys()
    assert got[1]["content-type"] == head[1]["content-type"]
    if path not in ("/metrics", "/v1/admin/overview"):  # these two hold figures that change between two requests
        assert int(head[1]["content-length"]) == int(got[1]["content-length"]) == len(got[2])


async def test_a_gateway_answers_head_like_get_without_a_body() -> None:
    async with serving() as port:
        for path in ("/livez", "/readyz", "/healthz", "/metrics", "/docs", "/openapi.json"):
            await check_head(port, path)
        for path in ("/health", "/ping", "/version"):
            await check_head(port, path)
        for path in ("/v1/models", "/v1/models/mock", "/v1/requests", "/v1/admin/overview", "/v1/admin/doctor"):
            await check_head(port, path)
        await check_head(port, "/nothing", 404)
        await check_head(port, "/v1/requests/01ARZ3NDEKTSV4RRFFQ69G5FAV", 404)


async def test_a_gateway_answers_head_of_a_stream_with_the_head_alone() -> None:
    async with serving() as port:
        asked = {"model": "mock", "input": "x", "background": True, "max_output_tokens": 16}
        async with httpx2.AsyncClient() as http:
            made = await http.post(f"http://127.0.0.1:{port}/v1/responses", json=asked)
        response_id = made.raise_for_status().json()["id"]
        for path in (
            f"/v1/requests/{response_id.removeprefix('resp_')}/events",
            f"/v1/responses/{response_id}?stream=true",
        ):
            status, headers, body = await heads(port, path, "HEAD")
            assert (status, headers["content-type"], body) == (200, "text/event-stream; charset=utf-8", b""), path
            assert "content-length" not in headers
        known = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
        for path in (f"/v1/requests/{known}/events", f"/v1/responses/resp_{known}?stream=true"):
            assert (await heads(port, path, "HEAD"))[::2] == (404, b""), path
        assert (await heads(port, "/v1/generate", "HEAD"))[0] == 405


async def test_a_wrong_method_is_answered_with_every_method_of_the_path() -> None:
    known = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    async with serving() as port:
        for path, method, allowed in (
            ("/livez", "POST", "GET, HEAD"),
            ("/v1/models", "DELETE", "GET, HEAD"),
            ("/openapi.json", "POST", "GET, HEAD"),
            ("/v1/generate", "GET", "POST"),
            (f"/v1/requests/{known}", "POST", "GET, HEAD, DELETE"),
            (f"/v1/requests/{known}/events", "PUT", "GET, HEAD"),
            (f"/v1/admin/dead/{known}", "PUT", "GET, HEAD, DELETE"),
        ):
            status, headers, _ = await heads(port, path, method)
            assert (status, headers["allow"]) == (405, allowed), path


async def test_a_worker_answers_head_like_get_without_a_body() -> None:
    server = await serve_ops(build_app(Metrics(), list, dict), _listener())
    for path in ("/livez", "/readyz", "/healthz", "/metrics", "/health", "/ping", "/version"):
        await check_head(server.port, path)
    await check_head(server.port, "/nothing", 404)
    await server.close()


class Lags:
    """What `watch_lag` says."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.num_flushed = 0

    def loop_lag(self, seconds: float) -> None:
        self.seen.append(seconds)

    def flush(self) -> None:
        self.num_flushed += 1


async def test_a_blocked_loop_shows() -> None:
    lags = Lags()
    task = asyncio.create_task(watch_lag(lags, every_s=0.005))  # type: ignore[arg-type]
    await wait_until(lambda: len(lags.seen) >= 2, "two samples")
    time.sleep(0.1)  # noqa: ASYNC251 - the blocking is what is measured
    await wait_until(lambda: max(lags.seen) > 0.08, "the lag shows")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lags.num_flushed == 1


# ── the docs page ────────────────────────────────────────────────────────────────────────────────────────────────


class Links(HTMLParser):
    """Every address that the page fetches, and every script that stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self._is_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]
        self.inline += [name for name, _ in attrs if name.startswith("on")]
        self._is_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._is_script and data.strip():
            self.inline.append(data)


@pytest.fixture
async def docs() -> AsyncIterator[httpx2.AsyncClient]:
    app = FastAPI(docs_url=None, redoc_url=None)
    app.include_router(docs_routes("/openapi.json", title="<b>"))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://docs") as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_leads_to_the_docs_page_also_behind_a_prefix(docs: httpx2.AsyncClient, method: str) -> None:
    answer = await docs.request(method, "/")
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


async def test_the_docs_page_needs_no_other_host(docs: httpx2.AsyncClient) -> None:
    page = await docs.get("/docs")
    links = Links()
    links.feed(page.text)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>&lt;b&gt;</title>" in page.text
    assert links.inline == []
    assert len(links.found) == 4
    for link in links.found:
        assert not re.match(r"[a-z]+:|//", link)
        answer = await docs.get(f"/{link}")
        assert answer.status_code == 200
        assert "sourceMappingURL=" not in answer.text


async def test_the_policy_of_the_docs_page_is_strict(docs: httpx2.AsyncClient) -> None:
    policy = (await docs.get("/docs")).headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert "http" not in policy


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("swagger-ui.css", "text/css; charset=utf-8"),
        ("favicon.png", "image/png"),
        ("start.js", "text/javascript; charset=utf-8"),
    ],
)
async def test_the_files_of_the_docs_page(docs: httpx2.AsyncClient, name: str, media_type: str) -> None:
    answer = await docs.get(f"/docs/{name}")
    assert answer.headers["content-type"] == media_type
    assert answer.headers["cache-control"] == "public, max-age=86400"
    again = await docs.get(f"/docs/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "LICENSE", "..%2F..%2Fops.py", "%2Fetc%2Fpasswd"])
async def test_nothing_else_is_served(docs: httpx2.AsyncClient, name: str) -> None:
    answer = await docs.get(f"/docs/{name}")
    assert answer.status_code == 404
    assert "def " not in answer.text


async def test_no_style_sheet_fetches_from_elsewhere(docs: httpx2.AsyncClient) -> None:
    sheet = (await docs.get("/docs/swagger-ui.css")).text
    assert "@import" not in sheet
    assert not re.search(r"url\(\s*['\"]?(?!data:|['\"]?data:)", sheet)
