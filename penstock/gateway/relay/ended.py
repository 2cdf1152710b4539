"""A gateway's memory of requests that have ended at it: whole answers, bounded in number, bytes and time.

A store may come back without its last moments; then a request that has ended is unknown to it, or runs once more. Its
gateway gives the end back (`keeper.py`). Pure: no store, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from penstock.gateway.relay.stream import RelayStream
from penstock.job import Job
from penstock.rich_token import Token

MAX_KEPT, MAX_KEPT_BYTES = 4096, 32 * 1024 * 1024
MAX_DELIVERED, MAX_DELIVERED_BYTES = 4096, 8 * 1024 * 1024


class _Kept(msgspec.Struct, gc=False):
    stream: RelayStream
    until: float
    num_bytes: int


class _Shelf:
    """Streams that have ended, the oldest first; at most `max_num` of them and `max_bytes` in all."""

    def __init__(self, max_num: int, max_bytes: int) -> None:
        self._max_num, self._max_bytes = max_num, max_bytes
        self.kept: OrderedDict[str, _Kept] = OrderedDict()
        self.num_bytes = 0

    def put(self, kept: _Kept) -> None:
        job_id = kept.stream.job.id
        self.pop(job_id)
        self.kept[job_id] = kept
        self.num_bytes += kept.num_bytes
        while len(self.kept) > self._max_num or self.num_bytes > self._max_bytes:
            self.pop(next(iter(self.kept)))

    def pop(self, job_id: str) -> _Kept | None:
        kept = self.kept.pop(job_id, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes
        return kept


class Ended:
    """Whole answers of requests that have ended, each for as long as the store keeps it, if there is room.

    What a client has had and is not kept for it is on a shelf of its own, so that many short answers do not displace
    the results of background requests. All times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._kept = _Shelf(MAX_KEPT, MAX_KEPT_BYTES)
        self._delivered = _Shelf(MAX_DELIVERED, MAX_DELIVERED_BYTES)

    def keep(self, stream: RelayStream, until: float) -> None:
        """Remember how it ended."""
        self._kept.put(_Kept(stream, until, _num_bytes(stream)))

    def delivered(self, job_id: str, until: float) -> None:
        """Its client has the whole answer and is not expected to come back for it."""
        kept = self._kept.pop(job_id)
        if kept is not None:
            kept.until = until
            self._delivered.put(kept)

    def forget(self, job_id: str) -> None:
        """It is not to be given back."""
        self._kept.pop(job_id)
        self._delivered.pop(job_id)

    def get(self, job_id: str, now: float) -> RelayStream | None:
        kept = self._kept.kept.get(job_id) or self._delivered.kept.get(job_id)
        return kept.stream if kept is not None and kept.until > now else None

    def keep_s(self, job_id: str, now: float) -> float:
        """How much longer it is to be kept; 0 for what is not here."""
        kept = self._kept.kept.get(job_id) or self._delivered.kept.get(job_id)
        return max(0.0, kept.until - now) if kept is not None else 0.0

    def is_delivered(self, job_id: str) -> bool:
        return job_id in self._delivered.kept

    def ids(self, now: float) -> list[str]:
        """All of them: first those not yet delivered, then the delivered ones; the newest first in each."""
        shelves = (self._kept, self._delivered)
        return [id_ for shelf in shelves for id_, kept in reversed(shelf.kept.items()) if kept.until > now]

    def expire(self, now: float) -> None:
        """Let go of those whose time is over. To be called now and then; it takes a look at each."""
        for shelf in (self._kept, self._delivered):
            for job_id in [id_ for id_, kept in shelf.kept.items() if kept.until <= now]:
                shelf.pop(job_id)


def _num_bytes(stream: RelayStream) -> int:
    """Its approximate size in memory, in bytes."""
    return 1024 + _size_of(stream.job) + _weight_of(stream.tokens)


def _weight_of(tokens: Sequence[Token]) -> int:
    try:
        return 64 * len(tokens) + len("".join(tokens))  # type: ignore[arg-type]  # nearly always all are text
    except TypeError:
        return sum(map(_weight, tokens))


def _weight(token: Token) -> int:
    if type(token) is str:
        return 64 + len(token)
    return len(msgspec.json.encode(token)) * 2 + 256


def _size_of(job: Job) -> int:
    if isinstance(job.prompt, str) and not job.notes:
        return len(job.prompt)
    return 2 * len(msgspec.json.encode((job.messages, job.inputs, job.queries, job.prompt, job.notes, job.sampling)))
