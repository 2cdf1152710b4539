"""What every path of a gateway has: whose error envelope, when to retry, and which pages may call it."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from penstock.api.app import create_app
from penstock.errors import CODES, PenstockError
from penstock.gateway.gateway import Gateway
from penstock.http import refusal
from penstock.http.edge import Call, error_response
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport


async def _ask(method: str, path: str, headers: dict[str, str] | None = None, **settings: Any) -> httpx2.Response:
    app = create_app(Gateway(Settings(**settings), MemoryTransport(), Metrics()))
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.request(method, path, headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/messages/nothing", 404, "not_found_error"),
        ("GET", "/v1/messages/batches/b_1", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", f"/v1/messages/x?{'q' * 5000}", 400, "invalid_request_error"),
    ],
)
async def test_every_path_of_messages_has_anthropics_error(method: str, path: str, status: int, kind: str) -> None:
    answer = await _ask(method, path)
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/messagesx", "/v1/nothing", "/v1/message"])
async def test_other_paths_have_our_own_error(path: str) -> None:
    answer = await _ask("POST", path)
    assert (answer.status_code, list(answer.json())) == (404, ["error"])
    assert "request-id" not in answer.headers


# ── when to retry ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", CODES.values(), ids=lambda kind: kind.code)
def test_every_429_and_503_names_a_time(kind: type[PenstockError]) -> None:
    headers = error_response(kind("x"), Call("g1.x")).headers
    names = {name for name in headers if name.startswith("retry-after")}
    assert names == ({"retry-after", "retry-after-ms"} if kind.status in (429, 503) else set())
    if names:
        assert int(headers["retry-after"]) >= 1
        assert int(headers["retry-after-ms"]) >= 1
        assert b"\r\nretry-after: 1\r\n" in refusal.answer(kind("x"))


@pytest.mark.parametrize("kind", CODES.values(), ids=lambda kind: kind.code)
def test_an_error_that_names_a_time_keeps_it(kind: type[PenstockError]) -> None:
    headers = error_response(kind("x", retry_after_s=2.5), Call("g1.x")).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2500")


async def test_the_document_has_the_headers_of_401_429_and_503() -> None:
    paths = (await _ask("GET", "/openapi.json")).json()["paths"]
    assert {"/health", "/ping", "/version"} <= paths.keys()
    for path, operations in paths.items():
        for operation in operations.values():
            for status, headers in (("401", ["WWW-Authenticate"]), ("429", ["Retry-After"]), ("503", ["Retry-After"])):
                if documented := operation["responses"].get(status):
                    assert set(headers) <= documented["headers"].keys(), path


# ── pages of apps and extensions ─────────────────────────────────────────────────────────────────────────────────

ORIGINS = ("app://obsidian.md", "tauri://localhost", "chrome-extension://abcdefgh", "vscode-webview://1a2b")


@pytest.mark.parametrize("origin", ORIGINS)
async def test_a_named_app_may_call_and_no_other_may(origin: str) -> None:
    allowed = await _ask("GET", "/livez", {"origin": origin}, cors_origins=",".join(ORIGINS))
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
    other = await _ask("GET", "/livez", {"origin": origin}, cors_origins="https://a.example")
    assert "access-control-allow-origin" not in other.headers


async def test_every_page_of_a_named_scheme_may_call() -> None:
    for origin, may in (
        ("vscode-webview://1a2b", True),
        ("vscode-webviews://1a2b", False),
        ("https://a.example", False),
    ):
        answer = await _ask("GET", "/livez", {"origin": origin}, cors_origins="vscode-webview://*")
        assert answer.headers.get("access-control-allow-origin") == (origin if may else None)


@pytest.mark.parametrize("origins", ["app://obsidian.md", "*"])
async def test_a_page_may_reach_a_private_address_where_its_origin_may(origins: str) -> None:
    asked = {
        "origin": "app://obsidian.md",
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    answer = await _ask("OPTIONS", "/v1/generate", asked, cors_origins=origins)
    assert (answer.status_code, answer.headers["access-control-allow-private-network"]) == (200, "true")
    del asked["access-control-request-private-network"]
    answer = await _ask("OPTIONS", "/v1/generate", asked, cors_origins=origins)
    assert "access-control-allow-private-network" not in answer.headers
    assert (await _ask("OPTIONS", "/v1/generate", asked | {"origin": "app://other"}, cors_origins="app://a")).is_error
