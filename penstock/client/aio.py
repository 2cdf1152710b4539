"""The asyncio shell: carries out the core's steps with an `httpx2.AsyncClient`.

The source of the blocking shell too: `make docs` writes `sync.py` from this file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from penstock.client.calls import Calls, StreamCall
from penstock.client.core import OnRetry
from penstock.client.options import MessageLike, Options, headers_of, policy_of
from penstock.client.sockets import CONNECT_S, limits, socket_options
from penstock.client.state import StreamBase
from penstock.client.steps import Broken, Give, Now, Pause, Read, ResponseHead, Rest, Send, Step, Steps
from penstock.client.types import Answer, ModelInfo, Status

T = TypeVar("T")


class _Wire:
    """At most one open response."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._response: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def do(self, step: Step) -> Any:
        try:
            if isinstance(step, Read):
                return b"" if self._chunks is None else await anext(self._chunks, b"")
            if isinstance(step, Rest):
                return b"" if self._response is None else await self._response.aread()
            if isinstance(step, Send):
                return await self._send(step)
        except httpx2.HTTPError as error:
            is_unmade = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            return Broken(str(error) or type(error).__name__, was_connected=not is_unmade)
        if isinstance(step, Pause):
            await self.close()
            await asyncio.sleep(step.seconds)
        return time.monotonic() if isinstance(step, Now) else None

    async def _send(self, step: Send) -> ResponseHead:
        await self.close()
        timeout = httpx2.Timeout(step.read_s, connect=CONNECT_S, pool=None)
        request = self._http.build_request(
            step.method, step.url, content=step.body, headers=dict(step.headers), timeout=timeout
        )
        self._response = await self._http.send(request, stream=True)
        self._chunks = self._response.aiter_bytes()
        return ResponseHead(self._response.status_code, dict(self._response.headers))

    async def close(self) -> None:
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            await response.aclose()


async def _drive(http: httpx2.AsyncClient, steps: Steps[Any]) -> AsyncGenerator[str, None]:
    """Run a call; yields what it gives."""
    wire = _Wire(http)
    reply: Any = None
    try:
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            if isinstance(step, Give):
                yield step.text
                reply = None
            else:
                reply = await wire.do(step)
    finally:
        await wire.close()


async def _run(http: httpx2.AsyncClient, steps: Steps[T]) -> T:
    """Run a call that gives nothing on its way; its result."""
    wire = _Wire(http)
    reply: Any = None
    try:
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply = await wire.do(step)
    finally:
        await wire.close()


class AsyncStream(StreamBase):
    """One answer as it comes: iterate for its tokens; then `answer` is there.

    A context manager: leaving it before the end cancels the request at the server, unless its `on_disconnect` is
    `resume` or `continue`. Errors are raised by the iteration.
    """

    def __init__(self, client: AsyncClient, call: StreamCall) -> None:
        super().__init__(call.state)
        self._client = client
        self._cancels = call.cancels
        self._tokens = _drive(client._http, call.steps)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._tokens

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of it. Safe to repeat."""
        await self._tokens.aclose()
        cancels, self._cancels = self._cancels, False
        if cancels and self._state.is_running:
            await self._client._run(self._client._calls.cancel_abandoned(self.request_id))

    async def result(self) -> Answer:
        """Read to the end."""
        async for _ in self._tokens:
            pass
        return self._whole()


class AsyncHandle:
    """A request that runs at the server, by its id, wherever it was begun."""

    def __init__(self, client: AsyncClient, request_id: str) -> None:
        self._client = client
        self.request_id = request_id

    async def status(self) -> Status:
        """The present state of the request at the server."""
        return await self._client._run(self._client._calls.status(self.request_id))

    async def cancel(self) -> Status:
        """Cancel it, waiting or running; what it became. One that has ended stays as it is."""
        return await self._client._run(self._client._calls.cancel(self.request_id))

    def stream(self, *, limit_s: float | None = None) -> AsyncStream:
        """Its tokens from the first on, also after its end. Leaving the stream cancels nothing."""
        return AsyncStream(self._client, self._client._calls.follow(self.request_id, limit_s))

    async def result(self, timeout_s: float | None = None) -> Answer:
        """Wait for the whole answer. Raises the request's error, or `DeadlineExceeded` after `timeout_s`."""
        async with self.stream(limit_s=timeout_s) as stream:
            return await stream.result()


class AsyncClient:
    """See docs/client.md. A context manager; one for many calls of one event loop. Raises `ConfigError` for a bad URL.

    `urls`: gateways of one pool, any of which answers for any request; default PENSTOCK_URL. `max_retries`: failures
    in a row, without progress, before a call gives up. `silence_s`: a stream without a byte for so long is
    resumed. `patience_s`: how long calls without a deadline of their own go on. `reach_s`: how long a client that has
    never reached a server tries to connect. `on_retry`: called with the error and the pause, in seconds, when a call
    that failed is tried again.
    """

    def __init__(
        self,
        *urls: str,
        api_key: str | None = None,
        max_retries: int = 8,
        silence_s: float = 45.0,
        patience_s: float = 600.0,
        reach_s: float = 1.0,
        max_connections: int = 100,
        on_retry: OnRetry | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._calls = Calls(policy_of(urls, max_retries, silence_s, patience_s, reach_s, on_retry))
        if transport is None:
            transport = httpx2.AsyncHTTPTransport(limits=limits(max_connections), socket_options=socket_options())
        self._http = httpx2.AsyncClient(headers=headers_of(api_key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """The whole answer to a prompt or a conversation."""
        return await self._run(self._calls.generate(prompt, messages, options))

    async def chat(self, messages: Sequence[MessageLike], **options: Unpack[Options]) -> Answer:
        """The answer to a conversation: `[{"role": "user", "content": "…"}, …]`."""
        return await self._run(self._calls.generate(None, messages, options))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """The answer token by token, each once, whatever breaks in between. Nothing is sent before it is iterated."""
        return AsyncStream(self, self._calls.stream(prompt, messages, options))

    async def submit(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> AsyncHandle:
        """Begin a request in the background; it runs on without a reader."""
        return self.handle(await self._run(self._calls.submit(prompt, messages, options)))

    def handle(self, request_id: str) -> AsyncHandle:
        """A request that was begun before, or elsewhere."""
        return AsyncHandle(self, request_id)

    async def requests(self, limit: int = 20) -> list[Status]:
        """The newest requests of this key, the newest first, without texts."""
        return await self._run(self._calls.requests(limit))

    async def models(self) -> list[ModelInfo]:
        """The models that are served at present and this key may use."""
        return await self._run(self._calls.models())

    async def _run(self, steps: Steps[T]) -> T:
        return await _run(self._http, steps)
