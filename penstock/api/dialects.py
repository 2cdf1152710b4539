"""Which API a call came through: what its log line, its metrics and its errors are made with."""

from __future__ import annotations

from fastapi import Request

from penstock.http.edge import Call, Dialect, call_of

OPENAI = Dialect()  # of chat completions, completions, embeddings, models and responses


def begin(request: Request, endpoint: str, dialect: Dialect | None = None) -> Call:
    """The call, which from here on is one of `endpoint` and answers in that API's words; None: in our own."""
    call = call_of(request)
    call.endpoint = endpoint
    call.dialect = dialect
    return call
