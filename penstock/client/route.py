"""Chooses the URL and the time of the next try: back-off and patience. Pure: time is an argument.

The server decides what a failure means by its headers (`x-should-retry`, `retry-after-ms`, `retry-after`); without
them the error's class does.
"""

from __future__ import annotations

import json
import math
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    InvalidRequest,
    Overloaded,
    PenstockError,
    Unauthorized,
    Unavailable,
    from_code,
)

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_PAUSE_S = 5.0  # of our own back-off
MAX_ASKED_S = 60.0  # a server that asks for a longer pause is not waited for
_FIRST_PAUSE_S = 0.1
_MAX_SHOWN = 200
_BY_STATUS: dict[int, type[PenstockError]] = {
    401: Unauthorized,
    403: Forbidden,
    429: Overloaded,
    500: InternalError,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def read_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """Base URLs without a slash at their end, and without the `/v1` that other tools want. Raises `ConfigError`."""
    read = []
    for url in urls:
        if not isinstance(url, str):
            raise ConfigError(f"a URL is text, not a {type(url).__name__}; several are several arguments")
        url = url.strip()
        if not _is_base_url(url):
            lacks_scheme = "://" not in url and _is_base_url(f"http://{url}")
            hint = f"; write http://{without_password(url)}" if lacks_scheme else ""
            raise ConfigError(f"{without_password(url)!r} is not an http:// or https:// URL of a server{hint}")
        read.append(url.rstrip("/").removesuffix("/v1").rstrip("/"))
    if not read:
        raise ConfigError("at least one URL is needed")
    return tuple(read)


def _is_base_url(url: str) -> bool:
    try:
        split = urlsplit(url if url.isprintable() else "")
        _ = split.port
    except ValueError:  # an invalid IPv6 address or port
        return False
    return split.scheme in ("http", "https") and bool(split.hostname) and not split.query and not split.fragment


class Route:
    """The URLs of one client; all its calls begin at the one that worked last.

    `was_reached`: some server has answered this client, in whatever way.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = read_urls(urls)
        self.at = 0
        self.was_reached = False

    @property
    def url(self) -> str:
        return self.urls[self.at]

    def advance(self, failed: str) -> None:
        """`failed` does not serve; if another call has gone on already, stay with it."""
        if self.url == failed:
            self.at = (self.at + 1) % len(self.urls)


@dataclass(slots=True)
class RetryBudget:
    """How often one call may fail in a row, and until when it may try. Any progress renews it.

    `reach_by`: until when it may try while no server was ever reached. Each URL is tried once in any case.
    """

    max_retries: int
    give_up_at: float
    num_urls: int = 1
    reach_by: float = math.inf
    rng: random.Random = field(default_factory=lambda: random.Random(secrets.randbits(64)))
    num_failed: int = 0

    def renew(self) -> None:
        self.num_failed = 0

    def pause_s(self, error: PenstockError, now: float, *, is_unreached: bool = False) -> float:
        """How long to wait before the next try. Raises `error`, or `DeadlineExceeded`, when there is to be none."""
        self.num_failed += 1
        if not error.retryable or self.num_failed > self.max_retries:
            raise error
        asked = error.retry_after_s
        if asked is not None and asked > MAX_ASKED_S:
            raise error
        if error.status >= 500 and self.num_failed < self.num_urls:
            wait = 0.0  # another server may be well: ask it at once
        elif asked is not None:
            wait = asked + self.rng.uniform(0, 0.1 * asked + 0.05)
        else:
            turns = self.num_failed // self.num_urls
            wait = min(MAX_PAUSE_S, _FIRST_PAUSE_S * 2 ** (turns - 1)) * self.rng.uniform(0.75, 1.25)
        if is_unreached and wait and now + wait > self.reach_by:
            raise error
        if now + wait >= self.give_up_at:
            raise DeadlineExceeded("There was no answer in time.") if now >= self.give_up_at else error
        return wait


def without_password(url: str) -> str:
    """A URL for people: without the password that it may hold."""
    scheme, mark, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def unreached_error(urls: Sequence[str], why: str) -> PenstockError:
    """The error for a client that has never reached a server."""
    shown = ", ".join(map(without_password, urls))
    hint = "Start a server there with `penstock serve`, or give another URL (PENSTOCK_URL)."
    error = Unavailable(f"Cannot connect to {shown}: {why}. {hint}")
    error.retryable = True
    return error


def connection_error(url: str, why: str) -> PenstockError:
    """The error for a connection that was not made, or broke: worth another try, anywhere."""
    error = Unavailable(f"{without_password(url)}: {why or 'the connection broke'}")
    error.retryable = True
    return error


def error_from_response(status: int, headers: Mapping[str, str], body: bytes, url: str) -> PenstockError:
    """The error that an error response holds. Without our envelope (a proxy answered) its class follows the status."""
    detail = _object(body).get("error")
    fields = detail if isinstance(detail, dict) else {}
    wait_s = _retry_after_s(headers)
    if fields.get("code"):
        error = error_from_envelope(fields, wait_s)
    else:
        kind = _BY_STATUS.get(status, InvalidRequest if 400 <= status < 500 else PenstockError)
        text = str(fields.get("message") or body[:_MAX_SHOWN].decode("utf-8", "replace")).strip()
        error = kind(f"{without_password(url)}: HTTP {status}" + (f": {text}" if text else ""), retry_after_s=wait_s)
    should = headers.get("x-should-retry")
    if should is not None:
        error.retryable = should == "true"
    error.status = status
    error.request_id = headers.get("x-request-id", "")
    return error


def error_from_envelope(fields: Mapping[str, Any], wait_s: float | None = None) -> PenstockError:
    """The error that the object `error` of an envelope names."""
    param = fields.get("param")
    return from_code(
        str(fields.get("code")),
        str(fields.get("message", "")),
        param=param if isinstance(param, str) else None,
        retry_after_s=wait_s,
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(wait) and wait >= 0:
            return wait
    try:  # a date counts from the answer's own, so that this machine's clock does not matter
        then, now = (parsedate_to_datetime(headers[name]) for name in ("retry-after", "date"))
        return max(0.0, (then - now).total_seconds())
    except (KeyError, ValueError, TypeError):  # absent, no date, or only one of the two with a time zone
        return None


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
