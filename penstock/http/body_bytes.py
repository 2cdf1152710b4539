"""A request's body as bytes: of the right kind, not too large, in time.

What a client can do wrong while it sends ends here as a `PenstockError`. Knows nothing of what the bytes say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request

from penstock.errors import BodyTooLarge, Cancelled, PenstockError, SlowBody, UnsupportedMediaType
from penstock.http.connection import WHOLE
from penstock.settings.about import env_name

MAX_DISCARDED_BYTES = 16 * 1024 * 1024
DISCARD_S = 1.0
_BLANK = b" \t"
GONE = "The client left before its request had arrived."


class ClientGone(Cancelled):
    """The client left before its request had arrived; no client is left to answer."""


async def read_body(
    request: Request,
    max_bytes: int,
    timeout_s: float,
    *,
    setting: str = "max_body_bytes",
    hold: Callable[[int], PenstockError | None] = lambda size: None,
) -> bytes:
    """The whole body, at most `max_bytes` (as `setting` has it), within `timeout_s`.

    Raises `UnsupportedMediaType`, `BodyTooLarge`, `SlowBody` or `ClientGone`, and what `hold` returns: it is called
    with the body's size as far as it is known. The size is counted while reading: `Content-Length` may be absent, and
    is used only to refuse a body that it declares too large.
    """
    check_media_type(request)

    def refused(size: int) -> PenstockError | None:
        if size > max_bytes:
            return BodyTooLarge(f"The request's body is larger than {max_bytes} bytes ({env_name(setting)}).")
        return hold(size)

    if request.scope.get(WHOLE):  # it has arrived already, as nearly every body has: there is nothing to wait for
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientGone(GONE)
        whole: bytes = message["body"]
        if (refusal := refused(len(whole))) is not None:
            raise refusal
        return whole
    announced = request.headers.get("content-length", "")
    refusal = refused(int(announced[:18])) if announced.isdecimal() else None
    if refusal is not None and "expect" in request.headers:  # the client waits for `100 Continue` before it sends
        raise refusal
    chunks: list[bytes] = []
    size = 0
    try:
        async with aclosing(request.stream()) as stream:
            async with asyncio.timeout(timeout_s):
                while refusal is None and (chunk := await anext(stream, None)) is not None:
                    size += len(chunk)
                    refusal = refused(size)
                    chunks.append(chunk)
            if refusal is not None:
                chunks.clear()
                await _discard(stream)
    except TimeoutError:
        limit = f"{timeout_s:g} s ({env_name('body_timeout_s')})"
        raise SlowBody(f"The request's body did not arrive within {limit}.") from None
    except ClientDisconnect:
        raise ClientGone(GONE) from None
    if refusal is not None:
        refusal.headers["connection"] = "close"  # the rest of the body is unread
        raise refusal
    return b"".join(chunks)


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """Read on for a while and keep nothing: a client cut off while it sends would see a reset and not our answer."""
    left = MAX_DISCARDED_BYTES
    try:
        async with asyncio.timeout(DISCARD_S):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return
    except TimeoutError:
        return


def check_media_type(request: Request) -> None:
    """`UnsupportedMediaType` unless the headers declare JSON in UTF-8, without a content coding."""
    kinds: list[bytes] = []
    codings: list[bytes] = []
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            kinds.append(value)
        elif name == b"content-encoding":
            codings += value.split(b",")
    if kinds != [b"application/json"]:
        _check_kind(kinds)
    if any(coding.strip(_BLANK).lower() not in (b"", b"identity") for coding in codings):
        raise UnsupportedMediaType("The body must not be compressed.")


def check_bodiless(request: Request) -> None:
    """The same rule for a POST without a body: `UnsupportedMediaType` for what any web page may send to any server.

    A page can send neither JSON nor a key across sites unless the server has allowed it. With a key the content type
    may be absent, as some clients name one only with a body.
    """
    names = {name for name, _ in request.scope["headers"]}
    if b"content-type" in names or names.isdisjoint((b"authorization", b"x-api-key", b"api-key")):
        check_media_type(request)


def _check_kind(kinds: list[bytes]) -> None:
    kind, *parameters = (kinds[0] if len(kinds) == 1 else b"").split(b";")
    if kind.strip(_BLANK).lower() != b"application/json":
        raise UnsupportedMediaType(
            "The content type must be application/json; curl sends it with -H 'content-type: application/json'."
        )
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        is_charset = name.strip(_BLANK).lower() == b"charset"
        if is_charset and value.strip(_BLANK).strip(b'"').lower() not in (b"utf-8", b"utf8"):
            raise UnsupportedMediaType("The charset must be utf-8.")
