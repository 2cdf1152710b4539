"""When to retry, as the headers of an error; and an error as the bytes of a whole answer, which no route gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from penstock.errors import PenstockError

RETRY_AFTER_S = 1.0  # of a 429 or 503 that names no time: most such errors are of a store that is away for a moment


def retry_headers(error: PenstockError) -> dict[str, str]:
    """When to try again, for every 429 and 503 and for other errors that name a time."""
    wait_s = error.retry_after_s
    if wait_s is None and error.status in (429, 503):
        wait_s = RETRY_AFTER_S
    if wait_s is None:
        return {}
    return {"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def answer(error: PenstockError, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """The last answer on its connection, in the one envelope. `headers`: more of them."""
    body = msgspec.json.encode(error.envelope())
    lines = [
        b"HTTP/1.1 %d %b" % (error.status, HTTPStatus(error.status).phrase.encode()),
        *(b"%b: %b" % header for header in headers),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-should-retry: %b" % (b"true" if error.retryable else b"false"),
        b"connection: close",
    ]
    lines += [b"%b: %b" % (name.encode(), value.encode()) for name, value in retry_headers(error).items()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
