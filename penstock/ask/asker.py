"""Asks a running server one thing at a time, and again where that may help.

Knows the HTTP API and the event stream; knows nothing of files and terminals.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx2

from penstock.errors import BackendError, ConfigError, Overloaded, PenstockError, Unavailable, from_code
from penstock.sse import Decoder, ServerEvent, SSEError

MAX_TRIES = 10
MAX_WAIT_S = 120.0  # a server that wants a longer pause is not waited for
SILENCE_S = 90.0  # a stream says something every 15 s; this long without a byte is a dead connection


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one prompt: a text, or an error. `usage` and `timings` are the server's."""

    request_id: str = ""
    text: str = ""
    finish_reason: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    error: PenstockError | None = None

    def record(self) -> dict[str, Any]:
        """The answer as a line of the answers file says it."""
        if self.error is not None:
            return dict(self.error.envelope())
        return {
            "request_id": self.request_id,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": dict(self.usage),
            "timings": dict(self.timings),
        }


class Asker:
    """A connection to one server. An async context manager; use one for many questions."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        max_connections: int = 1,
        max_tries: int = 1,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises `ConfigError` for a URL that is none."""
        try:
            parsed = httpx2.URL(url.rstrip("/"))
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{url!r} is no URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"{url!r} is no http:// or https:// URL")
        self._url = str(parsed)
        self._max_tries = max_tries
        self._http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(SILENCE_S, connect=10.0, pool=None),
            limits=httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, body: Mapping[str, Any], on_text: Callable[[str], None] | None = None) -> Answer:
        """Ask until there is an answer, at most `max_tries` times; every failure is in `Answer.error`.

        Again only after what may pass: 429, 503, a lost worker, a broken connection; and never once `on_text` was
        given something, so that it sees no text twice.
        """
        for attempt in range(1, self._max_tries + 1):
            texts: list[str] = []
            try:
                return await self._once(body, texts, on_text)
            except PenstockError as error:
                wait_s = pause_s(error, attempt)
                is_shown = on_text is not None and bool(texts)
                if attempt == self._max_tries or not error.retryable or wait_s > MAX_WAIT_S or is_shown:
                    return Answer(text="".join(texts), error=error)
            await asyncio.sleep(wait_s)
        raise ValueError("max_tries must be at least 1")

    async def _once(self, body: Mapping[str, Any], texts: list[str], on_text: Callable[[str], None] | None) -> Answer:
        async with aclosing(self._events({**body, "stream": True})) as events:
            async for event in events:
                data = _object(event.data)
                if event.event == "token":
                    texts.append(str(data.get("text", "")))
                    if on_text is not None:
                        on_text(texts[-1])
                elif event.event == "error":
                    raise _error(data, None, None)
                elif event.event == "done":
                    return Answer(
                        request_id=str(data.get("request_id", "")),
                        text="".join(texts),
                        finish_reason=str(data.get("finish_reason", "")),
                        usage=data.get("usage") or {},
                        timings=data.get("timings") or {},
                    )
        raise Unavailable(f"{self._url}: the stream ended without `done` or `error`")

    async def _events(self, body: Mapping[str, Any]) -> AsyncGenerator[ServerEvent, None]:
        try:
            async with self._http.stream("POST", f"{self._url}/v1/generate", json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    raise _error(_object(text), response.status_code, response.headers.get("retry-after"))
                decoder = Decoder()
                async for chunk in response.aiter_bytes():
                    for event in decoder.feed(chunk):
                        yield event
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self._url}: {str(error) or type(error).__name__}") from error
        except SSEError as error:
            raise BackendError(f"{self._url}: {error}") from error


def pause_s(error: PenstockError, attempt: int) -> float:
    """How long to wait after the given failed attempt (1, 2, …): as asked, else doubling, and a quarter of jitter."""
    wanted = error.retry_after_s if error.retry_after_s is not None else min(30.0, 0.25 * 2**attempt)
    return wanted + random.uniform(0.0, 0.25 * wanted + 0.1)


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _error(data: Mapping[str, Any], status: int | None, retry_after: str | None) -> PenstockError:
    """The error of an envelope; without one (a proxy answered) that of the status."""
    wait_s = float(retry_after) if retry_after and retry_after.isdecimal() else None
    body = data.get("error")
    if isinstance(body, dict) and body.get("code"):
        return from_code(str(body["code"]), str(body.get("message", "")), param=body.get("param"), retry_after_s=wait_s)
    kind = {429: Overloaded, 503: Unavailable}.get(status or 0, PenstockError)
    return kind(f"HTTP {status}" if status else "the server sent an error that says nothing", retry_after_s=wait_s)
