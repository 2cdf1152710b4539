"""What every path of a gateway has: whose error envelope, when to retry, and which pages may call it."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from penstock.api.app import create_app
from penstock.gateway.gateway import Gateway
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
