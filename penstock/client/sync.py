"""The blocking shell: carries out the core's steps with an `httpx2.Client`. May be shared by threads."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from penstock.client import core
from penstock.client.core import StreamBase, StreamState
from penstock.client.options import MessageLike, Options, body_of, cancels_on_close, headers_of, limit_of, policy_of
from penstock.client.sockets import CONNECT_S, limits, socket_options
from penstock.client.steps import Broken, Give, Now, Pause, Read, ResponseHead, Rest, Send, Step, Steps
from penstock.client.types import Answer, ModelInfo, Status
from penstock.errors import PenstockError

logger = logging.getLogger("penstock.client")

T = TypeVar("T")
CANCEL_LIMIT_S = 5.0


class _Wire:
    """At most one open response."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def do(self, step: Step) -> Any:
        try:
            if isinstance(step, Read):
                return next(self._chunks, b"")
            if isinstance(step, Rest):
                return b"".join(self._chunks)
            if isinstance(step, Send):
                return self._send(step)
        except httpx2.HTTPError as error:
            return Broken(str(error) or type(error).__name__)
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
        response, self._response = self._response, None
        if response is not None:
            response.close()


def _drive(http: httpx2.Client, steps: Steps[T]) -> Generator[str, None, T]:
    """Run a call; yields what it gives, returns its result."""
    wire = _Wire(http)
    reply: Any = None
    try:
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if isinstance(step, Give):
                yield step.text
                reply = None
            else:
                reply = wire.do(step)
    finally:
        wire.close()


def _run(http: httpx2.Client, steps: Steps[T]) -> T:
    driven = _drive(http, steps)
    while True:
        try:
            next(driven)
        except StopIteration as stop:
            result: T = stop.value
            return result


class Stream(StreamBase):
    """One answer as it comes: iterate for its tokens; then `answer` is there.

    A context manager: leaving it before the end cancels the request at the server, unless its `on_disconnect` is
    `resume` or `continue`. Errors are raised by the iteration.
    """

    def __init__(self, client: Client, state: StreamState, steps: Steps[Answer], *, cancels: bool) -> None:
        self._client = client
        super().__init__(state)
        self._cancels = cancels
        self._tokens = _drive(client._http, steps)

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
            self._client._cancel_abandoned(self._state.request_id)

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

    @property
    def _path(self) -> str:
        return f"/v1/requests/{self.request_id}"

    def status(self) -> Status:
        return core.read_as(self._client._ask("GET", self._path), Status, "request")

    def cancel(self) -> Status:
        """Cancel it, waiting or running; what it became. One that has ended stays as it is."""
        return core.read_as(self._client._ask("DELETE", self._path), Status, "request")

    def stream(self, *, limit_s: float | None = None) -> Stream:
        """Its tokens from the first on, also after its end. Leaving the stream cancels nothing."""
        state = StreamState(request_id=self.request_id)
        steps = core.stream(self._client._policy, state, None, limit_s=limit_s)
        return Stream(self._client, state, steps, cancels=False)

    def result(self, timeout_s: float | None = None) -> Answer:
        """Wait for the whole answer. Raises the request's error, or `DeadlineExceeded` after `timeout_s`."""
        with self.stream(limit_s=timeout_s) as stream:
            return stream.result()


class Client:
    """See docs/client.md. A context manager; one for many calls and threads. Raises `ConfigError` for a bad URL.

    `urls`: gateways of one pool, any of which answers for any request; default PENSTOCK_URL. `max_retries`: failures
    in a row, without state, before a call gives up. `silence_s`: a stream without a byte for so long is
    resumed. `patience_s`: how long calls without a deadline of their own go on.
    """

    def __init__(
        self,
        *urls: str,
        api_key: str | None = None,
        max_retries: int = 8,
        silence_s: float = 45.0,
        patience_s: float = 600.0,
        max_connections: int = 100,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._policy = policy_of(urls, max_retries, silence_s, patience_s)
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
        self._http.close()

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """The whole answer to a prompt or a conversation."""
        body = body_of(prompt, messages, options)
        key = options.get("idempotency_key") or core.new_key()
        steps = core.ask(self._policy, "POST", core.GENERATE, body, key=key, limit_s=limit_of(options))
        return core.read_as(_run(self._http, steps), Answer, "answer")

    def chat(self, messages: Sequence[MessageLike], **options: Unpack[Options]) -> Answer:
        """The answer to a conversation: `[{"role": "user", "content": "…"}, …]`."""
        return self.generate(messages=messages, **options)

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """The answer token by token, each once, whatever breaks in between. Nothing is sent before it is iterated."""
        body = body_of(prompt, messages, options)
        key = options.get("idempotency_key") or core.new_key()
        state = StreamState()
        steps = core.stream(self._policy, state, body, key=key, limit_s=limit_of(options))
        return Stream(self, state, steps, cancels=cancels_on_close(options))

    def submit(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Handle:
        """Begin a request in the background; it runs on without a reader."""
        body = body_of(prompt, messages, options, background=True)
        key = options.get("idempotency_key") or core.new_key()
        data = self._ask("POST", core.GENERATE, body, key=key)
        return self.handle(str(data.get("request_id", "")))

    def handle(self, request_id: str) -> Handle:
        """A request that was begun before, or elsewhere."""
        return Handle(self, request_id)

    def requests(self, limit: int = 20) -> list[Status]:
        """The newest requests of this key, the newest first, without texts."""
        found = self._ask("GET", f"/v1/requests?limit={limit:d}").get("data")
        return core.read_as({"data": found}, dict[str, list[Status]], "list of requests")["data"]

    def models(self) -> list[ModelInfo]:
        """The models that are served at present and this key may use."""
        found = self._ask("GET", "/v1/models").get("data")
        return core.read_as({"data": found}, dict[str, list[ModelInfo]], "list of models")["data"]

    def _cancel_abandoned(self, request_id: str) -> None:
        """Cancel a request that lost its reader; should that fail, it ends by itself within the resume window."""
        try:
            steps = core.ask(self._policy, "DELETE", f"/v1/requests/{request_id}", limit_s=CANCEL_LIMIT_S)
            _run(self._http, steps)
        except PenstockError as error:
            logger.warning("could not cancel %s: %s", request_id, error.message)

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, key: str | None = None
    ) -> dict[str, Any]:
        return _run(self._http, core.ask(self._policy, method, path, body, key=key))
