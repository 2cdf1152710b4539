"""Error replies of Redis: what they become for the caller, and how they are counted and logged. No I/O.

No error reply ends a process. Each one means that this command could not be done now: the caller retries, or its
client does. Redis can send errors that this version has never heard of, so there is no list of those that are harmless.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hiredis import ReplyError

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.link import Reply, StoreMetrics

log = logging.getLogger(__name__)

LOG_EVERY_S = 5.0

# Replies that mean that Redis cannot do it now: memory, persistence, replicas, a busy script.
_UNABLE = ("OOM", "MISCONF", "NOREPLICAS", "BUSY", "TRYAGAIN", "UNKILLABLE", "EXECABORT")
_WRONG_TYPE = "WRONGTYPE"
_DENIED_IN_A_SCRIPT = ("can't run this command", "can't access", "ACL failure", "o permissions")  # by the server's age


class Refused(StoreUnavailable):
    """Redis answers, and refuses this command for now: asking again at once is of no use. `kind`: see `kind_of`."""

    kind = "unknown"


def is_wrong_type(reply: Reply) -> bool:
    """A key of another type than the protocol's is in the way: of one request, or of the pool."""
    return isinstance(reply, ReplyError) and str(reply).startswith(_WRONG_TYPE)


def is_out_of_memory(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith("OOM")


def shown(name: bytes) -> str:
    """An id or a name as text. Any program may have written it, so it need not be UTF-8: such bytes are escaped."""
    return name.decode("utf-8", "backslashreplace")


def kind_of(reply: ReplyError) -> str:
    """One of a few words: it becomes a metric's label."""
    text = str(reply)
    if text.startswith(_WRONG_TYPE):
        return "wrong_type"
    if text.startswith(("NOPERM", "NOAUTH")) or any(words in text for words in _DENIED_IN_A_SCRIPT):
        return "no_permission"
    return "refused" if text.startswith((*_UNABLE, "MOVED")) else "unknown"


class Refusals:
    """Turns error replies into errors of our own; counts each, and logs each sort with its text now and then."""

    def __init__(self, metrics: StoreMetrics, now: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._now = now
        self._logged_at: dict[tuple[str, str], float] = {}  # verbs and kinds: a few dozen

    def __call__(self, verb: str, reply: ReplyError) -> Refused:
        kind = kind_of(reply)
        self._metrics.store_error(kind)
        now = self._now()
        if now - self._logged_at.get((verb, kind), float("-inf")) >= LOG_EVERY_S:
            self._logged_at[verb, kind] = now
            log.warning("Redis refused to %s, it will be tried again: %s", verb, reply)
        refused = Refused(f"Redis refused to {verb}: {reply}")
        if str(reply).startswith("MOVED"):
            refused = Refused("This server is a node of a Redis Cluster: its URL begins with redis+cluster://")
        refused.kind = kind
        return refused
