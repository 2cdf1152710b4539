"""The core: what to send, what an answer means, where and when to go on. Does no I/O: see `steps.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.client.route import (
    RetryBudget,
    Route,
    connection_error,
    error_from_envelope,
    error_from_response,
    unreached_error,
    without_password,
)
from penstock.client.state import StreamState
from penstock.client.steps import Broken, Give, Now, Pause, Read, ResponseHead, Rest, Send, Steps
from penstock.client.types import Answer
from penstock.errors import BackendError, Cancelled, DeadlineExceeded, PenstockError
from penstock.rich_token import text_of
from penstock.sse import Decoder, SSEError

GENERATE = "/v1/generate"
_GATEWAYS_OWN = ("draining", "store_unavailable")  # it ends its streams so when it goes away or is cut off
SLACK_S = 30.0  # how much longer than the request's own deadline a call keeps trying
OnRetry = Callable[[PenstockError, float], None]


@dataclass(slots=True)
class Policy:
    """The limits that all calls of a client share. Seconds."""

    route: Route
    max_retries: int = 8
    silence_s: float = 45.0  # a stream sends something every 15 s: this long without a byte is a dead connection
    patience_s: float = 600.0  # of calls that have no deadline of their own
    reach_s: float = 1.0  # how long to try where no server was ever reached: most likely there is none
    on_retry: OnRetry | None = None

    def budget(self, now: float, limit_s: float | None) -> RetryBudget:
        """The limits of one call that begins `now`."""
        give_up_at = now + (self.patience_s if limit_s is None else limit_s)
        return RetryBudget(self.max_retries, give_up_at, len(self.route.urls), now + self.reach_s)


def ask(
    policy: Policy,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    key: str | None = None,
    limit_s: float | None = None,
) -> Steps[dict[str, Any]]:
    """One JSON object for another, tried for `limit_s` (default: the client's patience) until there is an answer."""
    data = None if body is None else _json(body)
    headers = _headers(body, key)
    limit_s = policy.patience_s if limit_s is None else limit_s
    budget = policy.budget((yield Now()), limit_s)
    while True:
        url = policy.route.url
        head = yield Send(method, url + path, headers, data, limit_s)
        content = (yield Rest()) if isinstance(head, ResponseHead) else head
        error = _fault(policy, head, content, url)
        if error is None:
            found = _parsed(content)
            if found is not None:
                return found
            error = BackendError(f"{without_password(url)}: the answer is not a JSON object")
        yield from _wait(policy, budget, error, url)


def stream(
    policy: Policy,
    state: StreamState,
    body: Mapping[str, Any] | None,
    *,
    key: str | None = None,
    limit_s: float | None = None,
) -> Steps[Answer]:
    """Follow one answer to its end, whatever breaks; gives each token once. `state` is kept current meanwhile.

    `body` starts it; None follows the request that `state` names. Before its id is known the same POST is repeated
    with the same key; after that the stream continues after the last event, at any gateway that answers.
    """
    data = None if body is None else _json({**body, "stream": True})
    now = yield Now()
    budget = policy.budget(now, limit_s)
    while True:
        url = policy.route.url
        read_s = max(0.1, min(policy.silence_s, budget.give_up_at - now))
        if data is not None and not state.last_id:
            head = yield Send("POST", url + GENERATE, _headers(body, key), data, read_s)
        else:
            again = {"last-event-id": state.last_id} if state.last_id else {}
            head = yield Send("GET", f"{url}/v1/requests/{state.request_id}/events", again, None, read_s)
        if isinstance(head, ResponseHead) and head.status == 200:
            policy.route.was_reached = True
            if not state.request_id and "idempotent-replayed" not in head.headers:
                state.request_id = head.headers.get("x-request-id", "")  # else its events say which one it is
            error = yield from _follow(state, budget, url, can_begin_anew=data is not None)
            if error is None:
                assert state.answer is not None
                return state.answer
            state.num_resumed += 1
        else:
            content = (yield Rest()) if isinstance(head, ResponseHead) else head
            error = _fault(policy, head, content, url) or connection_error(url, "an answer without a stream")
        now = yield from _wait(policy, budget, error, url)
        state.has_failed = False


def _follow(state: StreamState, budget: RetryBudget, url: str, *, can_begin_anew: bool) -> Steps[PenstockError | None]:
    """Read one connection's events; None when the answer is whole, else why there is nothing more to read here."""
    decoder = Decoder()
    while True:
        chunk = yield Read()
        if (yield Now()) >= budget.give_up_at:
            return DeadlineExceeded("There was no answer in time.")
        if isinstance(chunk, Broken):
            return connection_error(url, chunk.why)
        if not chunk:
            return connection_error(url, "the stream ended before its end")
        try:
            events = decoder.feed(chunk)
        except SSEError as error:
            return connection_error(url, str(error))
        for event in events:
            data = _parsed(event.data)
            if data is None:
                return connection_error(url, "an event is not a JSON object")
            if event.event == "error":
                return _error_event(data, state, can_begin_anew=can_begin_anew)
            if event.event == "done" and data.get("finish_reason") == "cancelled":
                cancelled = Cancelled("The request was cancelled.")  # as when it is whole: part of it is not an answer
                cancelled.request_id = state.request_id
                state.has_failed = True
                return cancelled
            is_next = state.take(event, data)
            if is_next is None:
                return connection_error(url, "a token is missing")
            if is_next:
                budget.renew()
                yield Give(text_of(state.tokens[-1]))
            if state.answer is not None:
                return None


def _error_event(data: Mapping[str, Any], state: StreamState, *, can_begin_anew: bool) -> PenstockError:
    """An error inside a stream: of this gateway only (the request continues elsewhere), or the request's own end."""
    fields = data.get("error")
    error = error_from_envelope(fields if isinstance(fields, dict) else {})
    state.request_id = error.request_id = str(data.get("request_id") or state.request_id)
    if error.code in _GATEWAYS_OWN:
        error.retryable = True
    elif can_begin_anew and not state.tokens:
        state.last_id = ""  # it has not begun: if the error is retryable, the same POST is another try
    else:
        error.retryable = False
    state.has_failed = error.code not in _GATEWAYS_OWN
    return error


def _wait(policy: Policy, budget: RetryBudget, error: PenstockError, url: str) -> Steps[float]:
    """Before the next try; the time then. Raises `error` if there is to be none."""
    pause_s = budget.pause_s(error, (yield Now()), is_unreached=not policy.route.was_reached)
    if error.status >= 500:
        policy.route.advance(url)
    if policy.on_retry is not None and policy.route.was_reached:
        policy.on_retry(error, pause_s)
    if pause_s > 0:
        yield Pause(pause_s)
    now: float = yield Now()
    return now


def _fault(policy: Policy, head: ResponseHead | Broken, content: bytes | Broken, url: str) -> PenstockError | None:
    route = policy.route
    route.was_reached = route.was_reached or isinstance(head, ResponseHead) or head.was_connected
    if isinstance(head, Broken):
        return connection_error(url, head.why) if route.was_reached else unreached_error(route.urls, head.why)
    if isinstance(content, Broken):
        return connection_error(url, content.why)
    if 200 <= head.status < 300:
        return None
    return error_from_response(head.status, head.headers, content, url)


def _json(body: Mapping[str, Any]) -> bytes:
    """In it may be parts of an answer, such as its tool calls."""
    return json.dumps(body, default=msgspec.to_builtins).encode()


def _headers(body: Mapping[str, Any] | None, key: str | None) -> dict[str, str]:
    headers = {} if body is None else {"content-type": "application/json"}
    return headers if key is None else headers | {"idempotency-key": key}


def _parsed(data: bytes | str) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
