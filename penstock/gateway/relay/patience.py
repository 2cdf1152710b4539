"""Watches streams over time: silence, deadlines, clients that do not return, jobs that are in no list.

Knows when; what is to be done about it is the relay's. Rule numbers are those of `docs/protocol.md`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from penstock.errors import DeadlineExceeded, NoWorkers
from penstock.gateway.pool import PoolView
from penstock.gateway.relay.stream import RelayStream
from penstock.transports.base import LATE, LATE_SLACK_S, LEASE_S, NO_WORKERS, TICK_S, EndReason, Record

RUNNING_SILENCE_S = 1.0
QUEUED_SILENCE_S = (2.0, 4.0, 5.0)
STRANDED_S = LEASE_S + TICK_S
OVERTAKEN_S = 2.0
DEADLINE_SLACK_S = LATE_SLACK_S + 1.0


class Acts(Protocol):
    """The actions that a relay offers to `Patience`."""

    def abandon(self, stream: RelayStream) -> None: ...

    def give_up(self, stream: RelayStream, reason: EndReason) -> None: ...

    def fail_late(self, stream: RelayStream, now: float) -> None: ...

    def may(self, kind: str, /) -> bool: ...

    def request_log(self, stream: RelayStream, reason: str, /) -> None: ...


class Patience:
    """Looks at the streams of one relay. `has_lease()`: see `Relay`."""

    def __init__(
        self,
        relay: Acts,
        pool: PoolView,
        grace_s: float,
        resume_window_s: float,
        has_lease: Callable[[], bool],
    ) -> None:
        self._relay = relay
        self._pool = pool
        self._grace_s = grace_s
        self._resume_window_s = resume_window_s
        self._has_lease = has_lease
        self._newest_started_at = self._looked_at = 0.0

    def look(self, streams: Sequence[RelayStream], now: float) -> None:
        """One round over all streams."""
        gap_s = now - self._looked_at if self._looked_at else 0.0
        self._looked_at = now
        for stream in streams:
            if gap_s > LEASE_S and stream.left_at:  # this process was frozen: its client could not return
                stream.left_at += gap_s
            if stream.end is None:
                self._look_at(stream, now)
            if stream.is_started:
                self._newest_started_at = max(self._newest_started_at, stream.submitted_at)

    def _look_at(self, stream: RelayStream, now: float) -> None:
        if now >= stream.deadline_at:
            self._end_late(stream, now)
            return
        is_left = stream.left_at and not stream.readers and stream.job.on_disconnect == "resume"
        if is_left and now - stream.left_at >= self._resume_window_s and self._has_lease():
            self._relay.abandon(stream)
            return
        waited_s = 0.0 if stream.is_started or stream.verdict is not None else now - stream.submitted_at
        if waited_s >= self._grace_s and not self._pool.serves(stream.job.model) and self._has_lease():
            stream.verdict = NoWorkers(NO_WORKERS, retry_after_s=self._grace_s)
            self._relay.give_up(stream, "no_workers")
        patience = RUNNING_SILENCE_S if stream.is_started else QUEUED_SILENCE_S[min(stream.num_asked, 2)]
        if now - stream.asked_at >= patience:
            stream.asked_at = now
            stream.num_asked += 1
            self._relay.request_log(stream, "silence")

    def _end_late(self, stream: RelayStream, now: float) -> None:
        if now >= stream.deadline_at + DEADLINE_SLACK_S:
            self._relay.fail_late(stream, now)
        elif not isinstance(stream.verdict, DeadlineExceeded):
            stream.verdict = DeadlineExceeded(LATE)
            self._relay.give_up(stream, "deadline")

    def is_stranded(self, stream: RelayStream, record: Record) -> bool:
        """A queued job that is silent while the queue is empty, or while later ones have started (rule 8).

        Also one whose record names a worker that is gone: the worker that took its id from the queue may have lost it,
        or a store that forgot everything does not know whose list to give back.
        """
        return time.monotonic() - stream.heard_at >= STRANDED_S and self._is_in_no_list(record, stream.submitted_at)

    def is_forsaken(self, record: Record) -> bool:
        """The same of a request that no stream here holds, as a client that polls it shows: its gateway may be gone."""
        age_s = record.now - record.created_at
        return age_s >= STRANDED_S and self._is_in_no_list(record, time.monotonic() - age_s)

    def _is_in_no_list(self, record: Record, submitted_at: float) -> bool:
        if record.state == "running":
            return not self._pool.is_live(record.worker) and self._relay.may("requeue_if_missing")
        is_overtaken = self._newest_started_at > submitted_at + OVERTAKEN_S
        return (self._pool.depth == 0 or is_overtaken) and self._relay.may("requeue_if_missing")
