"""Every method of a client as steps, once for both shells: what it sends, how long it tries, how its answer is read.

`aio.py` and `sync.py` carry the steps out. Does no I/O.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from penstock.client import core
from penstock.client.core import Policy
from penstock.client.options import MessageLike, Options, body_of, cancels_on_close, limit_of
from penstock.client.state import StreamState
from penstock.client.steps import Steps
from penstock.client.types import Answer, ModelInfo, Status
from penstock.errors import BackendError, PenstockError

logger = logging.getLogger("penstock.client")

CANCEL_LIMIT_S = 5.0
T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class StreamCall:
    """A stream that has not been sent yet. `cancels`: leaving it before its end cancels the request."""

    state: StreamState
    steps: Steps[Answer]
    cancels: bool


class Calls:
    """The calls of one client."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def generate(self, prompt: str | None, messages: Sequence[MessageLike] | None, options: Options) -> Steps[Answer]:
        body = body_of(prompt, messages, options)
        return _read(self._post(body, options, limit_of(options)), Answer, "an answer")

    def stream(self, prompt: str | None, messages: Sequence[MessageLike] | None, options: Options) -> StreamCall:
        body, state = body_of(prompt, messages, options), StreamState()
        steps = core.stream(self._policy, state, body, key=_key_of(options), limit_s=limit_of(options))
        return StreamCall(state, steps, cancels_on_close(options))

    def submit(self, prompt: str | None, messages: Sequence[MessageLike] | None, options: Options) -> Steps[str]:
        """The id of a request that runs in the background."""
        body = body_of(prompt, messages, options, background=True)
        data = yield from self._post(body, options, None)
        return str(data.get("request_id", ""))

    def follow(self, request_id: str, limit_s: float | None) -> StreamCall:
        """The stream of a request that is there already."""
        state = StreamState(request_id=request_id)
        return StreamCall(state, core.stream(self._policy, state, None, limit_s=limit_s), cancels=False)

    def status(self, request_id: str) -> Steps[Status]:
        return _read(core.ask(self._policy, "GET", _path(request_id)), Status, "a request")

    def cancel(self, request_id: str) -> Steps[Status]:
        return _read(core.ask(self._policy, "DELETE", _path(request_id)), Status, "a request")

    def cancel_abandoned(self, request_id: str) -> Steps[None]:
        """Cancel a request that lost its reader; should that fail, it ends by itself within the resume window."""
        try:
            yield from core.ask(self._policy, "DELETE", _path(request_id), limit_s=CANCEL_LIMIT_S)
        except PenstockError as error:
            logger.warning("could not cancel %s: %s", request_id, error.message)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Steps[dict[str, Any]]:
        """Any other call: the JSON object that the server answers."""
        return core.ask(self._policy, method, path, body)

    def requests(self, limit: int) -> Steps[list[Status]]:
        return _read_data(
            core.ask(self._policy, "GET", f"/v1/requests?limit={limit:d}"), list[Status], "a list of requests"
        )

    def models(self) -> Steps[list[ModelInfo]]:
        return _read_data(core.ask(self._policy, "GET", "/v1/models"), list[ModelInfo], "a list of models")

    def _post(self, body: dict[str, Any], options: Options, limit_s: float | None) -> Steps[dict[str, Any]]:
        return core.ask(self._policy, "POST", core.GENERATE, body, key=_key_of(options), limit_s=limit_s)


def _key_of(options: Options) -> str:
    return options.get("idempotency_key") or secrets.token_hex(16)


def _path(request_id: str) -> str:
    return f"/v1/requests/{request_id}"


def _read(steps: Steps[dict[str, Any]], kind: type[T], what: str) -> Steps[T]:
    return read_as((yield from steps), kind, what)


def _read_data(steps: Steps[dict[str, Any]], kind: type[T], what: str) -> Steps[T]:
    """The same of the answer's `data`."""
    return read_as((yield from steps).get("data"), kind, what)


def read_as(data: Any, kind: type[T], what: str) -> T:
    """A whole answer of known form. Raises `BackendError` where it has another one."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise BackendError(f"The server's answer is not {what}: {error}.") from error
