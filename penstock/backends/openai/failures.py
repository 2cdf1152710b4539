"""The meaning of a failed request at an upstream: for its job, for the next try, for the replica. Pure.

    upstream answers                   the job's error         next try              the replica's fault
    400 413 414 415 422                InvalidRequest          none                  no
    501                                InvalidRequest          elsewhere             no
    401 403                            BackendError            elsewhere             no (a client can provoke a 403)
    404, other 3xx and 4xx             BackendError            elsewhere             no
    429                                Overloaded              elsewhere, or later   no; see `rests` for Retry-After
    429 insufficient_quota             Overloaded              elsewhere             no
    408 409 425                        BackendError            elsewhere, or later   no
    502 503 504, no connection         BackendError            elsewhere, or later   yes
    other 5xx                          BackendError            the same, `tries`     if the request succeeds elsewhere
    cut, timeout, nonsense             BackendError            the same, `tries`     yes

A 400 whose words are about the context's length is `ContextLengthExceeded`, which clients react to by its code.
"later" is the same replica again, after a pause. A try that may have cost the engine work is counted (`tries`); one
that surely has not is free, and bounded by time alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import msgspec

from penstock.errors import (
    BackendError,
    ContextLengthExceeded,
    InvalidRequest,
    Overloaded,
    PenstockError,
    UnsupportedTask,
)

# The labels of metrics and logs.
Reason = Literal[
    "invalid", "credentials", "not_found", "refused", "rate_limited", "server_error", "unreachable", "timeout", "cut",
    "malformed",
]  # fmt: skip
Again = Literal["never", "elsewhere", "later"]

MAX_MESSAGE = 1000
MAX_REST_S = 60.0  # the default of the option `max_rest_s`

_INVALID = (400, 413, 414, 415, 422)
_UNBEGUN = (502, 503, 504)
# Words of vLLM, SGLang, llama.cpp, TGI, Mistral and Ollama for a request that is longer than the model's context.
_LENGTH = re.compile(
    r"(?i)exceed_context_size|context_length_exceeded|maximum context length|context (length|size|window)"
    r"|max_new_tokens.{0,20} must be <=|inputs.{0,20} must have less than|prompt is too long"
)
# A number so near to now, in seconds, is an instant and not a length of time.
_NEAR_S = 10 * 365 * 86_400
_DURATION = re.compile(r"(?:(?P<m>[0-9.]+)\s*m(?!s))?\s*(?:(?P<s>[0-9.]+)\s*s)?\s*(?:(?P<ms>[0-9.]+)\s*ms)?", re.I)


class UpstreamError(Exception):
    """`error` is what the client reads if no other try helps. `rest_s`: the replica's `Retry-After`.

    `answer`: status and message of a 5xx that the engine itself answered with. The same answer at every try is the
    request's doing, as far as one can see: see `RetryPlan.failed`.
    """

    def __init__(
        self,
        reason: Reason,
        error: PenstockError,
        *,
        again: Again = "later",
        is_fault: bool = True,
        costs_try: bool = True,
        rest_s: float | None = None,
        answer: str = "",
    ) -> None:
        super().__init__(f"{reason}: {error.message}")
        self.reason: Reason = reason
        self.error = error
        self.again: Again = again
        self.is_fault = is_fault
        self.costs_try = costs_try
        self.rest_s = rest_s
        self.answer = answer


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The content of an error's body, as far as it can be read."""

    message: str = ""
    code: str = ""
    param: str | None = None
    type: str = ""


def of_status(
    status: int, retry_after: str | None, body: bytes, model: str, key: str = "", max_rest_s: float = MAX_REST_S
) -> UpstreamError:
    """The error for an answer with a status other than 200. `key` is never in its message. `retry_after` counts up
    to `max_rest_s`.
    """
    return _of(status, read_error(body, key), read_retry_after(retry_after, max_rest_s), model)


def _of(status: int, found: ErrorBody, rest_s: float | None, model: str) -> UpstreamError:
    if status in _INVALID:
        message = found.message or f"The model's upstream refused the request (HTTP {status})."
        kind = ContextLengthExceeded if _is_about_length(found) else InvalidRequest
        return UpstreamError("invalid", kind(message, param=found.param), again="never", is_fault=False)
    if status == 501:
        message = found.message or "The model's upstream cannot do what the request asks for (HTTP 501)."
        wrong: PenstockError = InvalidRequest(message, param=found.param)
        if found.code == UnsupportedTask.code:  # of Penstock's own
            wrong = UnsupportedTask(message, param=found.param)
        return UpstreamError("invalid", wrong, again="elsewhere", is_fault=False, costs_try=False)
    if status == 429:
        error: PenstockError = Overloaded("The model's upstream is at capacity.", retry_after_s=rest_s)
        again: Again = "elsewhere" if found.code == "insufficient_quota" else "later"
        return UpstreamError("rate_limited", error, again=again, is_fault=False, costs_try=False, rest_s=rest_s)
    if status >= 500:
        words = f": {found.message}" if found.message else "."
        error = BackendError(f"The model's upstream failed (HTTP {status}){words}")
        if status in _UNBEGUN:
            return UpstreamError("server_error", error, costs_try=False, rest_s=rest_s)
        return UpstreamError("server_error", error, rest_s=rest_s, answer=f"{status} {found.message}")
    error = BackendError(f"The model's upstream failed (HTTP {status}).")
    if status in (408, 409, 425):
        return UpstreamError("refused", error, is_fault=False, rest_s=rest_s)
    reason: Reason = "refused"
    if status in (401, 403):
        reason, error = "credentials", BackendError(f"The upstream rejected this server's credentials (HTTP {status}).")
    elif status == 404:
        reason, error = (
            "not_found",
            BackendError(f"The upstream returned 404: it does not serve {model!r}, or the route is wrong."),
        )
    return UpstreamError(reason, error, again="elsewhere", is_fault=False, costs_try=False)


def lacks(path: str, model: str) -> UpstreamError:
    """404 where only some servers have a route: this one may have been started without it."""
    message = f"The model's upstream returned 404 for {path}: it does not offer that, or does not serve {model!r}."
    error = UnsupportedTask(message, param="model")
    return UpstreamError("invalid", error, again="elsewhere", is_fault=False, costs_try=False)


def unreachable(what: str) -> UpstreamError:
    """No connection, or one that broke before the request was sent."""
    return UpstreamError(
        "unreachable", BackendError(f"The model's upstream cannot be reached ({what})."), costs_try=False
    )


def timeout(what: str) -> UpstreamError:
    return UpstreamError("timeout", BackendError(f"The model's upstream {what}."))


def cut(what: str) -> UpstreamError:
    return UpstreamError("cut", BackendError(f"The model's upstream interrupted its answer ({what})."))


def too_much(limit: int, max_tokens: int) -> UpstreamError:
    """An answer longer than its `max_tokens` can explain. It is not retried, as the tokens received so far count."""
    message = f"The model's upstream sent more than {limit} characters, though max_tokens is {max_tokens}."
    return UpstreamError("malformed", BackendError(message), again="never")


def malformed(what: str) -> UpstreamError:
    """The upstream is up, and its response is not valid."""
    return UpstreamError("malformed", BackendError(f"The model's upstream sent an invalid response: {what}."))


def of_stream(error: Any, model: str, key: str = "") -> UpstreamError:
    """For an error inside a stream; many servers send the status that it would have had as `code`."""
    status = error.get("code") if isinstance(error, Mapping) else None
    if isinstance(status, int) and 400 <= status < 600:
        return _of(status, _read_fields(error, key), None, model)
    return UpstreamError("server_error", BackendError("The model's upstream failed while it answered."))


def read_error(body: bytes, key: str = "") -> ErrorBody:
    """OpenAI's envelope, or a flat object as some servers send it; anything else gives an empty `ErrorBody`."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ErrorBody()
    error = data.get("error", data) if isinstance(data, dict) else None
    return _read_fields(error, key)


def _read_fields(error: Any, key: str) -> ErrorBody:
    if isinstance(error, str):
        return ErrorBody(_clean(error, key))
    if not isinstance(error, Mapping):
        return ErrorBody()
    message, code, param, kind = (error.get(name) for name in ("message", "code", "param", "type"))
    return ErrorBody(
        _clean(message, key) if isinstance(message, str) else "",
        _clean(code, key)[:64] if isinstance(code, str) else "",
        _clean(param, key)[:200] if isinstance(param, str) and param else None,
        _clean(kind, key)[:64] if isinstance(kind, str) else "",
    )


def _is_about_length(found: ErrorBody) -> bool:
    return found.code == "context_length_exceeded" or _LENGTH.search(f"{found.type} {found.message}") is not None


def _clean(text: str, key: str) -> str:
    """Text that a client may read: without keys and control characters, of limited length."""
    if key:
        text = text.replace(key, "***")
    text = "".join(char if char.isprintable() else " " for char in text[: 2 * MAX_MESSAGE])
    return text[:MAX_MESSAGE].strip()


def read_retry_after(value: str | None, max_s: float = MAX_REST_S, now: datetime | None = None) -> float | None:
    """Seconds from a `Retry-After` header: a number or a date, as in RFC 9110, 10.2.3, and what else servers send:
    fractions, units (`1m30s`, `250ms`), ISO dates, an instant since 1970 in seconds or milliseconds. From 0 to `max_s`;
    None for nonsense.
    """
    text = (value or "").strip()
    if not text:
        return None
    at = now or datetime.now(UTC)
    seconds = _read_number(text, at.timestamp())
    if seconds is None:
        seconds = _read_date(text, at)
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), max_s)


def _read_number(text: str, now: float) -> float | None:
    first = text.split(",")[0]  # of a header that was sent twice
    try:
        number = float(first)
    except ValueError:
        return _read_duration(first)
    for instant in (number, number / 1000.0):
        if abs(instant - now) < _NEAR_S:
            return instant - now
    return number


def _read_duration(text: str) -> float | None:
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        return None
    try:
        minutes, seconds, millis = (float(found[name] or 0) for name in ("m", "s", "ms"))
    except ValueError:
        return None
    return 60.0 * minutes + seconds + millis / 1000.0


def _read_date(text: str, now: datetime) -> float | None:
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            at = read(text)
            return ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - now).total_seconds()
        except (ValueError, OverflowError):
            continue
    return None
