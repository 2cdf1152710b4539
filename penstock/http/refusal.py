"""An error as the bytes of a whole answer, for a client whose request no route sees."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from penstock.errors import PenstockError


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
    if error.retry_after_s is not None:
        lines.append(b"retry-after: %d" % error.retry_after_s)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
