"""The blocking shell. Written by `make docs` from `aio.py`: change that file."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
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

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] | None = None

    def do(self, step: Step) -> Any:
        try:
            if isinstance(step, Read):
                return b"" if self._chunks is None else next(self._chunks, b"")
            if isinstance(step, Rest):
                return b"" if self._response is None else self._response.read()
            if isinstance(step, Send):
                return self._send(step)
        except httpx2.HTTPError as error:
            is_unmade = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            return Broken(str(error) or type(error).__name__, was_connected=not is_unmade)
        if isinstance(step, Pause):
            self.close()
            time.sleep(step.seconds)
        return time.monotonic() if isinstance(step, Now) else None

    def _send(self, step: Send) -> ResponseHead:
        self.close()
        timeout = httpx2.Timeout(step.read_s, connect=CONNECT_S, pool=None)
        request = self._http.build_request(
            step.method, step.url, content=step.body, headers=dict(step.headers), timeout=timeout
        )
        self._response = self._http.send(request, stream=True)
        self._chunks = self._response.iter_bytes()
        return ResponseHead(self._response.status_code, dict(self._response.headers))

    def close(self) -> None:
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            response.close()


def _drive(http: httpx2.Client, steps: Steps[Any]) -> Generator[str, None, None]:
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
                reply = wire.do(step)
    finally:
        wire.close()


def _run(http: httpx2.Client, steps: Steps[T]) -> T:
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
            reply = wire.do(step)
    finally:
        wire.close()


class Stream(StreamBase):
    """One answer as it comes: iterate for its tokens; then `answer` is there.

    A context manager: leaving it before the end cancels the request at the server, unless its `on_disconnect` is
    `resume` or `continue`. Errors are raised by the iteration.
    """

    def __init__(self, client: Client, call: StreamCall) -> None:
        super().__init__(call.state)
        self._client = client
        self._cancels = call.cancels
        self._tokens = _drive(client._http, call.steps)

    def __iter__(self) -> Iterator[str]:
        return self._tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it. Safe to repeat."""
        self._tokens.close()
        cancels, self._cancels = self._cancels, False
        if cancels and self._state.is_running:
            self._client._run(self._client._calls.cancel_abandoned(self.request_id))

    def result(self) -> Answer:
        """Read to the end."""
        for _ in self._tokens:
            pass
        return self._whole()


class Handle:
    """A request that runs at the server, by its id, wherever it was begun."""

    def __init__(self, client: Client, request_id: str) -> None:
        self._client = client
        self.request_id = request_id

    def status(self) -> Status:
        """The present state of the request at the server."""
        return self._client._run(self._client._calls.status(self.request_id))

    def cancel(self) -> Status:
        """Cancel it, waiting or running; what it became. One that has ended stays as it is."""
        return self._client._run(self._client._calls.cancel(self.request_id))

    def stream(self, *, limit_s: float | None = None) -> Stream:
        """Its tokens from the first on, also after its end. Leaving the stream cancels nothing."""
        return Stream(self._client, self._client._calls.follow(self.request_id, limit_s))

    def result(self, timeout_s: float | None = None) -> Answer:
        """Wait for the whole answer. Raises the request's error, or `DeadlineExceeded` after `timeout_s`."""
        with self.stream(limit_s=timeout_s) as stream:
            return stream.result()


class Client:
    """See docs/client.md. A context manager; one for many calls and threads. Raises `ConfigError` for a bad URL.

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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._calls = Calls(policy_of(urls, max_retries, silence_s, patience_s, reach_s, on_retry))
        if transport is None:
            transport = httpx2.HTTPTransport(limits=limits(max_connections), socket_options=socket_options())
        self._http = httpx2.Client(headers=headers_of(api_key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """The whole answer to a prompt or a conversation."""
        return self._run(self._calls.generate(prompt, messages, options))

    def chat(self, messages: Sequence[MessageLike], **options: Unpack[Options]) -> Answer:
        """The answer to a conversation: `[{"role": "user", "content": "…"}, …]`."""
        return self._run(self._calls.generate(None, messages, options))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """The answer token by token, each once, whatever breaks in between. Nothing is sent before it is iterated."""
        return Stream(self, self._calls.stream(prompt, messages, options))

    def submit(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Handle:
        """Begin a request in the background; it runs on without a reader."""
        return self.handle(self._run(self._calls.submit(prompt, messages, options)))

    def handle(self, request_id: str) -> Handle:
        """A request that was begun before, or elsewhere."""
        return Handle(self, request_id)

    def requests(self, limit: int = 20) -> list[Status]:
        """The newest requests of this key, the newest first, without texts."""
        return self._run(self._calls.requests(limit))

    def models(self) -> list[ModelInfo]:
        """The models that are served at present and this key may use."""
        return self._run(self._calls.models())

    def _run(self, steps: Steps[T]) -> T:
        return _run(self._http, steps)
