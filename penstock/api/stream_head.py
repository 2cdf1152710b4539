"""The head of an answer that is a stream."""

from __future__ import annotations

from starlette.responses import Response

SSE_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")
STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def head_of_stream() -> Response:
    """The answer to HEAD where GET streams events: the stream's headers, and no length, as a stream has none."""
    head = Response(headers={name.decode(): value.decode() for name, value in (SSE_TYPE, *STREAM_HEADERS)})
    del head.headers["content-length"]
    return head
