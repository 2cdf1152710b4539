"""A JSON body as an HTTP answer. No cache keeps it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

NO_STORE = {"cache-control": "no-store"}


def json_response(content: object, status: int = 200, headers: Mapping[str, str] = {}) -> Response:
    """`content`: what msgspec encodes."""
    return Response(msgspec.json.encode(content), status, NO_STORE | dict(headers), "application/json")
