"""The store of a simulated run: the memory transport, watched, and able to lose its data.

It checks each write as it happens: nothing after an end, no gap, no token that does not belong behind the last. Some
verbs are several commands on Redis; `partly` does the first of them only.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from penstock.event import Done, Event, Failed, Started, fold
from penstock.fleet import Pool
from penstock.job import Claim, Job
from penstock.rich_token import Token
from penstock.transports.base import LEASE_S, CancelOutcome, EndReason, Outcome, State
from penstock.transports.memory import MemoryTransport
from penstock.transports.memory_state import Entry, Snapshot
from tests.simulation.tokens import fault_of

Publish = Callable[[Event], None]


class ModelStore(MemoryTransport):
    """`on_violation(text)`: a promise was broken."""

    def __init__(
        self,
        now: Callable[[], float],
        on_violation: Callable[[str], None],
        lease_s: float = LEASE_S,
        retention_s: float = 3600.0,
    ) -> None:
        super().__init__(now=now, lease_s=lease_s, retention_s=retention_s)
        self._on_violation = on_violation
        self._said: dict[str, list[Token]] = {}
        self.listeners: dict[str, Publish] = {}
        self.num_halves = 0

    # ── as Redis does it ─────────────────────────────────────────────────────────────────────────────────────────

    async def tick(self, gateway_id: str) -> Pool:
        pool = await super().tick(gateway_id)
        for worker_id in list(self._workers):
            await self.reap(worker_id)
        return pool

    async def submit_again(self, job: Job, owner: str, max_depth: int, floor: int, front: bool) -> int:
        """Submit after an unknown outcome: look before pushing."""
        entry = self._jobs.get(job.id)
        if entry is not None and (entry.state != "queued" or job.id in self._queue):
            return len(self._queue)
        return await self.submit(job, owner, max_depth, floor=floor, front=front)

    def partly(self, verb: str, args: tuple[Any, ...], rng: random.Random) -> Callable[[], None]:
        """What to call after the verb so that only its first commands have been executed; the caller hears nothing."""
        if verb in ("restore", "submit", "submit_again"):  # the hash, not the push
            job_id = args[0].id
            before = self._queue.count(job_id)
            return lambda: self._queue.remove(job_id) if self._queue.count(job_id) > before else None
        if verb == "cancel":  # the end, not the removal from the queue
            waiting = deque(self._queue)
            return lambda: setattr(self, "_queue", waiting)
        if verb == "emit":  # the terminal frame, not the state
            ends = [event for event in args[1] if isinstance(event, Done | Failed) and event.attempt % 2]
            return lambda: self._halve(ends)
        return lambda: None

    def _halve(self, ends: Sequence[Done | Failed]) -> None:
        for end in ends:
            entry = self._jobs.get(end.job_id)
            if entry is not None and entry.state == "done" and entry.log[-1] == end:
                entry.state = "running"
                self.num_halves += 1

    def _complete(self, job_id: str) -> None:
        """What every script does that finds an end in the log and no `done` in the hash."""
        entry = self._jobs.get(job_id)
        if entry is not None and entry.state != "done" and entry.log and isinstance(entry.log[-1], Done | Failed):
            entry.state, entry.ended_at = "done", self._now()

    async def cancel(self, job_id: str, reason: EndReason, owner: str | None = None) -> CancelOutcome:
        self._complete(job_id)
        return await super().cancel(job_id, reason, owner)

    async def restore(self, job: Job, owner: str, tokens: Sequence[Token], attempt: int) -> bool:
        self._complete(job.id)
        return await super().restore(job, owner, tokens, attempt)

    async def restore_end(self, outcome: Outcome, owner: str) -> bool:
        self._complete(outcome.job.id)
        return await super().restore_end(outcome, owner)

    async def emit(self, worker_id: str, events: Iterable[Event]) -> set[str]:
        listed = list(events)
        for event in listed:
            self._complete(event.job_id)
        return await super().emit(worker_id, listed)

    async def hand_back(self, worker_id: str, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._complete(claim.job.id)
        await super().hand_back(worker_id, claims)

    def _claim_one(self, worker_id: str, job_id: str, now: float) -> Claim | None:
        self._complete(job_id)
        return super()._claim_one(worker_id, job_id, now)

    # ── data that is lost ────────────────────────────────────────────────────────────────────────────────────────

    def load(self, state: Snapshot) -> None:
        super().load(state)
        self._said.clear()

    def lose_an_id(self) -> str | None:
        """What a bare BLPOP of somebody does."""
        return self._queue.popleft() if self._queue else None

    # ── what is checked ──────────────────────────────────────────────────────────────────────────────────────────

    def _append(self, entry: Entry, event: Event, publish: bool = True) -> None:
        self._check(entry, event)
        super()._append(entry, event, publish)  # to listeners of its own: the contract suite has some, a run has wires
        if publish:
            for hear in self.listeners.values():
                hear(event)

    def _check(self, entry: Entry, event: Event) -> None:
        last = entry.log[-1] if entry.log else None
        if isinstance(last, Done | Failed):
            self._on_violation(f"{event} was written behind the end {last}")
        if last is not None and event.attempt < last.attempt:
            self._on_violation(f"{event} was written behind a higher attempt, {last}")
        if event.seq > entry.num_tokens:
            self._on_violation(f"{event} leaves a gap behind {entry.num_tokens} tokens")
        said = self._said.get(event.job_id)
        if said is None or not entry.log:
            said = self._said[event.job_id] = list(fold(entry.log).tokens)
        del said[event.seq :]
        for token in () if isinstance(event, Started) else event.tokens:
            fault = fault_of(event.job_id, len(said), said[-1] if said else None, token)
            if fault is not None:
                self._on_violation(f"in the log, {fault}")
            said.append(token)

    # ── what is left ─────────────────────────────────────────────────────────────────────────────────────────────

    def state(self, job_id: str) -> State | None:
        entry = self._jobs.get(job_id)
        return None if entry is None else entry.state

    def holds(self, *, of_known_only: bool) -> dict[str, list[str]]:
        """Every list that is not empty. A store that went back in time has none to reap a worker it never knew:
        what that one had popped is pushed again by its gateway, and its list stays until it expires.
        """
        lists = {name: ids for name, ids in self._lists.items() if name in self._workers or not of_known_only}
        lists["queue"] = list(self._queue)
        return {name: list(ids) for name, ids in lists.items() if ids}
