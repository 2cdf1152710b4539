"""Which claims run together, and when. Pure: time is an argument; the worker's loop does the waiting.

Claims of one `(model, max_tokens)` form a group. A group is sealed into a batch when it is full, or when its window
has passed since its first job, and only while there is a free batch slot to run it in: while every batch slot is busy
groups keep filling, so that no small batch is sealed that must then wait. The group that has waited longest goes first.
While most batch slots are free, a window that no claim joins any more closes early. The last two free batch slots are
worth more: they wait until arrivals pause, so that a burst is not left waiting behind small batches for a whole
generation. After a death, suspects are batched only among themselves; after a second one, alone. Knows no engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from penstock.job import Batch, Claim

QUIET_SHARE = 0.25  # fraction of the window without arrivals after which a batch closes early; see bench/README.md
# Of the free batch slots, and at most half of all: these wait for a pause of one window; see bench/batch_slots.py.
LAST_BATCH_SLOTS = 2
MAX_LULL_WINDOWS = 10  # and at most for so many

Closing = Literal["early", "whole", "lull"]


@dataclass(slots=True, eq=False)
class _Waiting:
    claim: Claim
    since: float
    turn: int


@dataclass(slots=True)
class _Group:
    """Claims that may share a batch, oldest first. The first `room` of them are the next batch, the rest come after.

    `newest_at` is when its newest claim came; from `quiet_at` on no more are expected.
    """

    room: int
    window_s: float
    is_continuous: bool
    quiet_at: float = inf
    newest_at: float = -inf
    queue: deque[_Waiting] = field(default_factory=deque)

    def sealed_at(self, closing: Closing) -> float:
        """The time from which its first batch may go."""
        first = self.queue[0]
        if len(self.queue) >= self.room:
            return first.since
        window_ends_at = first.since + self.window_s
        if closing == "early":
            return min(window_ends_at, self.quiet_at)
        if closing == "lull":
            return min(self.newest_at + self.window_s, first.since + MAX_LULL_WINDOWS * self.window_s)
        return window_ends_at

    def seal(self) -> Batch:
        return Batch(tuple(self.queue.popleft().claim for _ in range(min(self.room, len(self.queue)))))


class Batcher:
    """Times are monotonic seconds, given by the caller and never decreasing.

    `window_s` is how long the first job of a group waits for others; `windows` holds other values for some models.
    `num_batch_slots` is how many batches may run at once. While more than half of these slots, and more than one, are
    free, a window ends after `QUIET_SHARE` of it without an arrival; with fewer a small batch would take from others
    what they need. One of the `LAST_BATCH_SLOTS` goes to a batch that no claim has joined for a whole window, or that
    is full, or after `MAX_LULL_WINDOWS`. With `num_batch_slots` 0 every window has its whole length. Models in
    `continuous` need neither window nor batch slot: their backends take jobs in at any step.
    """

    def __init__(
        self,
        max_batch_size: int,
        window_s: float,
        windows: Mapping[str, float] | None = None,
        continuous: Collection[str] = (),
        num_batch_slots: int = 0,
    ) -> None:
        if max_batch_size < 1 or window_s < 0:
            raise ValueError("max_batch_size must be at least 1 and window_s at least 0")
        self._max_batch_size = max_batch_size
        self._window_s = window_s
        self._windows = dict(windows or {})
        self._continuous = frozenset(continuous)
        self._num_batch_slots = num_batch_slots
        self._groups: dict[Hashable, _Group] = {}
        self._keys: dict[str, Hashable] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, claim: Claim, now: float) -> None:
        """A claim begins to wait. `ValueError` if its job already does."""
        job = claim.job
        if job.id in self._keys:
            raise ValueError(f"job {job.id} is already waiting")
        key = (*job.batch_key, min(claim.num_deaths, 2), job.id if claim.num_deaths > 1 else "")
        group = self._groups.get(key)
        if group is None:
            continuous = job.model in self._continuous
            window_s = 0.0 if continuous else self._windows.get(job.model, self._window_s)
            room = 1 if claim.num_deaths > 1 else self._max_batch_size
            group = self._groups[key] = _Group(room, window_s, continuous)
        self._keys[job.id] = key
        self._turn += 1
        group.queue.append(_Waiting(claim, now, self._turn))
        group.newest_at = now
        if self._num_batch_slots and not group.is_continuous:
            group.quiet_at = self.quiet_at(job.model, group.window_s, now)

    def quiet_at(self, model: str, window_s: float, now: float) -> float:
        """A claim has just arrived: the time from which, if no other arrives, no more are expected."""
        return now + QUIET_SHARE * window_s

    def ready(self, now: float, free: int) -> list[Batch]:
        """The batches to start now, the oldest group first: at most `free`, besides those of continuous models."""
        batches: list[Batch] = []
        while True:
            sealed = [
                (group.queue[0].turn, key, group)
                for key, group in self._groups.items()
                if (free > 0 or group.is_continuous) and group.sealed_at(self._closing(free)) <= now
            ]
            if not sealed:
                return batches
            _, key, group = min(sealed, key=lambda item: item[0])
            batch = group.seal()
            for claim in batch.claims:
                del self._keys[claim.job.id]
            if not group.queue:
                del self._groups[key]
            if not group.is_continuous:
                free -= 1
            batches.append(batch)

    def next_deadline(self, free: int = 1) -> float | None:
        """The time from which `ready`, given `free` batch slots, returns a batch; None while nothing waits."""
        closing = self._closing(free)
        return min((group.sealed_at(closing) for group in self._groups.values()), default=None)

    def _closing(self, free: int) -> Closing:
        if 0 < free <= LAST_BATCH_SLOTS and 2 * free <= self._num_batch_slots:
            return "lull"
        return "early" if 0 < self._num_batch_slots < 2 * free and free > 1 else "whole"

    def discard(self, job_id: str) -> Claim | None:
        """Remove and return one waiting claim; None if it does not wait here."""
        key = self._keys.pop(job_id, None)
        if key is None:
            return None
        queue = self._groups[key].queue
        waiting = next(waiting for waiting in queue if waiting.claim.job.id == job_id)
        queue.remove(waiting)
        if not queue:
            del self._groups[key]
        return waiting.claim

    def drain(self) -> list[Claim]:
        """Remove and return every claim, oldest first."""
        everything = [waiting for group in self._groups.values() for waiting in group.queue]
        everything.sort(key=lambda waiting: waiting.turn)
        self._groups.clear()
        self._keys.clear()
        return [waiting.claim for waiting in everything]
