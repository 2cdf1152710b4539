"""What the simulation must notice: each mutation takes one rule of `docs/protocol.md` out of the code.

A simulation that passes with a rule taken out says nothing about that rule. Each begins with the rule's number.
Rule 1's clock in the attempt is not here: what it closes takes a chain of accidents that random seeds do not meet, and
`tests/contract/test_rules.py` scripts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from penstock.errors import StoreUnavailable
from penstock.event import Event, Tokens
from penstock.gateway.relay import patience
from penstock.gateway.relay.keeper import Keeper
from penstock.gateway.relay.look_up import LookUp
from penstock.gateway.relay.patience import Patience
from penstock.gateway.relay.relay import Relay
from penstock.gateway.relay.repair import Repairer
from penstock.gateway.relay.stream import RelayStream
from penstock.gateway.relay.table import StreamTable
from penstock.job import Claim
from penstock.transports.base import Bound, Record, Renewal
from penstock.transports.memory import MemoryTransport
from penstock.worker import suspects
from penstock.worker.outbox import Outbox
from penstock.worker.tenure import Tenure
from tests.simulation.people import Gauge
from tests.simulation.store import ModelStore

Mutation = Callable[[pytest.MonkeyPatch], None]


def nothing_is_fenced(patch: pytest.MonkeyPatch) -> None:
    """1: a frame of an older attempt is taken."""
    emit = MemoryTransport.emit

    async def unfenced(self: MemoryTransport, worker_id: str, events: Iterable[Event]) -> set[str]:
        for event in events:
            entry = self._jobs.get(event.job_id)
            if entry is not None and entry.state == "running" and entry.attempt != event.attempt:
                entry.attempt = event.attempt
        return await emit(self, worker_id, events)

    patch.setattr(MemoryTransport, "emit", unfenced)


def nothing_is_submitted_again(patch: pytest.MonkeyPatch) -> None:
    """2: a gateway does not give back what the store forgot."""

    async def nothing(self: Repairer, stream: RelayStream) -> None:
        return

    patch.setattr(Repairer, "_resubmit", nothing)


def the_end_is_not_fenced(patch: pytest.MonkeyPatch) -> None:
    """3: what finds `done` writes all the same."""
    emit = MemoryTransport.emit

    async def behind_the_end(self: MemoryTransport, worker_id: str, events: Iterable[Event]) -> set[str]:
        for event in events:
            entry = self._jobs.get(event.job_id)
            if entry is not None and entry.state == "done":
                entry.state, entry.attempt = "running", max(entry.attempt, event.attempt)
        return await emit(self, worker_id, events)

    patch.setattr(MemoryTransport, "emit", behind_the_end)


def whatever_is_heard_is_believed(patch: pytest.MonkeyPatch) -> None:
    """4: after a new subscription frames are believed before the log was read; a gap is no reason to read it."""

    def fold_it(self: Repairer, stream: RelayStream, event: Event) -> None:
        if stream.end is None and event.attempt >= stream.attempt:
            stream.accept(event, time.monotonic())
            if stream.end is not None:
                self._on_end(stream)

    patch.setattr(Repairer, "on_event", fold_it)


def a_new_subscription_is_no_reason_to_ask(patch: pytest.MonkeyPatch) -> None:
    """4, 15: neither a new subscription nor silence makes a gateway read the log."""
    patch.setattr(Relay, "invalidate_all", lambda self: None)
    patch.setattr(patience, "RUNNING_SILENCE_S", 1e9)


def nothing_is_restored(patch: pytest.MonkeyPatch) -> None:
    """5: a log that is behind the client stays so."""

    async def nothing(self: Repairer, *args: Any) -> None:
        return

    patch.setattr(Repairer, "_restore", nothing)
    patch.setattr(Repairer, "_judge", nothing)


def the_reply_is_what_a_worker_holds(patch: pytest.MonkeyPatch) -> None:
    """6: what is in the list without this worker's knowledge stays there."""
    take = Tenure._take
    renewed = Tenure.renewed

    async def take_new(self: Tenure, want: int) -> list[str]:
        seen: set[str] = self.__dict__.setdefault("seen", set())
        fresh = [id_ for id_ in await take(self, want) if id_ not in seen]
        seen.update(fresh)
        return fresh

    def forget_strays(self: Tenure, renewal: Renewal) -> None:
        renewed(self, renewal)
        self._has_strays = False

    patch.setattr(Tenure, "_take", take_new)
    patch.setattr(Tenure, "renewed", forget_strays)


def a_repeated_claim_is_a_death(patch: pytest.MonkeyPatch) -> None:
    """6, 9: the same worker's second claim counts as the death of the first."""
    claim_one = MemoryTransport._claim_one

    def claim(self: MemoryTransport, worker_id: str, job_id: str, now: float) -> Claim | None:
        entry = self._jobs.get(job_id)
        if entry is not None and entry.state == "running" and entry.worker == worker_id:
            entry.worker = "nobody"
        return claim_one(self, worker_id, job_id, now)

    may_live = MemoryTransport._may_live
    patch.setattr(MemoryTransport, "_may_live", lambda self, worker: worker != "nobody" and may_live(self, worker))
    patch.setattr(MemoryTransport, "_claim_one", claim)


def a_duplicate_steals(patch: pytest.MonkeyPatch) -> None:
    """7: a second copy of an id takes the job from the worker that runs it, and that counts as a death."""
    patch.setattr(MemoryTransport, "_is_held", lambda self, holder, job_id: False, raising=False)
    claim_one = MemoryTransport._claim_one

    def claim(self: MemoryTransport, worker_id: str, job_id: str, now: float) -> Claim | None:
        entry = self._jobs.get(job_id)
        if entry is not None and entry.state == "running":
            self._unlist(entry.worker, job_id)
        return claim_one(self, worker_id, job_id, now)

    patch.setattr(MemoryTransport, "_claim_one", claim)
    patch.setattr(ModelStore, "submit_again", _push_again)


def a_lost_id_stays_lost(patch: pytest.MonkeyPatch) -> None:
    """8: no gateway pushes again an id that is in no list."""
    patch.setattr(Patience, "is_stranded", lambda self, stream, record: False)


def only_queued_jobs_are_looked_for(patch: pytest.MonkeyPatch) -> None:
    """8: a job that runs at a worker that is not there waits without end."""
    is_stranded = Patience.is_stranded

    def judge(self: Patience, stream: RelayStream, record: Record) -> bool:
        return record.state == "queued" and is_stranded(self, stream, record)

    patch.setattr(Patience, "is_stranded", judge)


def deaths_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """9: a poison request kills worker after worker."""
    claim_one = MemoryTransport._claim_one

    def claim(self: MemoryTransport, worker_id: str, job_id: str, now: float) -> Claim | None:
        entry = self._jobs.get(job_id)
        if entry is not None:
            entry.deaths_in_a_row = entry.num_deaths = 0
        return claim_one(self, worker_id, job_id, now)

    patch.setattr(MemoryTransport, "_claim_one", claim)


def suspects_wait_together(patch: pytest.MonkeyPatch) -> None:
    """9: suspects that only wait behind a poison request die with it."""

    def keep_all(self: suspects.Suspects, claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
        return list(claims), []

    patch.setattr(suspects.Suspects, "part", keep_all)
    patch.setattr(suspects.Suspects, "is_trying", False)


def the_dead_are_not_reaped(patch: pytest.MonkeyPatch) -> None:
    """What a dead worker held stays in its list."""

    async def nothing(self: MemoryTransport, dead_worker_id: str) -> int:
        return 0

    patch.setattr(MemoryTransport, "reap", nothing)


def a_lapsed_lease_is_renewed(patch: pytest.MonkeyPatch) -> None:
    """10: a worker that was declared dead goes on under the same id, beside the one that has its work."""
    renew = MemoryTransport.renew

    async def revive(self: MemoryTransport, info: Any, running: Sequence[str]) -> Renewal:
        if info.id in self._workers:
            self._workers[info.id].lapses_at = self._now() + 1.0
        renewal = await renew(self, info, running)
        return Renewal(is_lost=False, held=renewal.held, dead=renewal.dead)

    patch.setattr(MemoryTransport, "renew", revive)
    patch.setattr(MemoryTransport, "_is_live", lambda self, worker_id: worker_id in self._workers)


def bytes_are_regrouped(patch: pytest.MonkeyPatch) -> None:
    """What was written once is written again as other frames: one token later, and without it."""
    emit = Outbox._emit

    async def regroup(self: Outbox, jobs: list[Any], events: list[Event]) -> set[str]:
        try:
            return await self._store.emit(self._worker_id, events)
        except StoreUnavailable:
            again: list[Event] = [
                Tokens(event.job_id, event.attempt, event.seq + 1, tokens=(*event.tokens[1:], " again"))
                if isinstance(event, Tokens)
                else event
                for event in events
            ]
            return await emit(self, jobs, again)

    patch.setattr(Outbox, "_emit", regroup)


def restored_tokens_are_only_added(patch: pytest.MonkeyPatch) -> None:
    """5: restore adds what the log lacks, and keeps what the short attempt wrote meanwhile."""
    restore = MemoryTransport.restore

    async def add(self: MemoryTransport, job: Any, owner: str, tokens: Sequence[str], attempt: int) -> bool:
        entry = self._jobs.get(job.id)
        if entry is None or len(tokens) > entry.num_tokens or entry.state == "done" or entry.attempt > attempt:
            return await restore(self, job, owner, tokens, attempt)
        self._raise_attempt(entry, attempt)
        entry.state, entry.worker = "queued", ""
        self._push(job.id, front=True)
        return True

    patch.setattr(MemoryTransport, "restore", add)


def what_has_ended_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A gateway does not give back how a request ended."""

    async def nothing(self: Keeper, job_id: str, state: str | None) -> None:
        return

    patch.setattr(Keeper, "_give_back", nothing)


def what_is_unknown_is_cancelled(patch: pytest.MonkeyPatch) -> None:
    """18: a frame of a request that is not held here is taken for one whose client has left."""
    patch.setattr(
        Relay, "_see_late", lambda self, job_id: self._repairer.spawn(self._canceller.cancel(job_id, "client"))
    )


def only_the_store_is_asked(patch: pytest.MonkeyPatch) -> None:
    """The gateway that holds a request does not answer for it."""

    async def look_up(self: LookUp, job_id: str) -> Record | None:
        return await self._store.read(job_id)

    patch.setattr(LookUp, "look_up", look_up)


def a_key_is_not_given_back(patch: pytest.MonkeyPatch) -> None:
    """An idempotency key is bound once, and never again with its request."""
    bind = Keeper.bind

    async def bind_new(self: Keeper, job: Any, keep_s: float, instead_of: str = "") -> Bound | None:
        is_restored = sys._getframe(1).f_code.co_name in ("_resubmit", "_give_back")
        return None if is_restored else await bind(self, job, keep_s, instead_of)

    patch.setattr(Keeper, "bind", bind_new)
    patch.setattr(StreamTable, "named", lambda self, job: "")


def half_an_end_stays_half(patch: pytest.MonkeyPatch) -> None:
    """3: a script that finds an end in the log and no `done` beside it goes on as if there were none."""
    patch.setattr(ModelStore, "_complete", lambda self, job_id: None)


def a_lost_submit_stays_in_the_gauge(patch: pytest.MonkeyPatch) -> None:
    """A submit of unknown outcome leaves its request measured as running."""
    patch.setattr(Gauge, "drop", lambda self: None)
    patch.setattr(Gauge, "leave", lambda self: None)


def a_client_reads_before_the_store_knows(patch: pytest.MonkeyPatch) -> None:
    """A request is marked as read a moment after its first token was given to a client."""
    mark = Repairer.mark_read

    async def later(self: Repairer, stream: RelayStream) -> None:
        async def marking() -> None:
            await asyncio.sleep(0.5)
            with contextlib.suppress(StoreUnavailable):
                await mark(self, stream)

        self.spawn(marking())

    patch.setattr(Repairer, "mark_read", later)


def void_tokens_are_kept(patch: pytest.MonkeyPatch) -> None:
    """A gateway keeps the tokens of an answer that has begun again."""
    patch.setattr(RelayStream, "drop", lambda self, num: None)


def what_was_read_begins_again(patch: pytest.MonkeyPatch) -> None:
    """The store lets a worker begin again what a client has read."""
    rerun = MemoryTransport.rerun

    async def rerun_all(self: MemoryTransport, worker_id: str, claims: Sequence[Claim]) -> list[Claim]:
        for claim in claims:
            if (entry := self._jobs.get(claim.job.id)) is not None:
                entry.is_unread = True
        return await rerun(self, worker_id, claims)

    patch.setattr(MemoryTransport, "rerun", rerun_all)


def nothing_is_run_again(patch: pytest.MonkeyPatch) -> None:
    """An answer that no client has read fails where it cannot be continued."""

    async def refuse(self: MemoryTransport, worker_id: str, claims: Sequence[Claim]) -> list[Claim]:
        return list(claims)

    patch.setattr(MemoryTransport, "rerun", refuse)


async def _push_again(self: ModelStore, job: Any, owner: str, max_depth: int, floor: int, front: bool) -> int:
    return await self.submit(job, owner, max_depth, floor=floor, front=front)


# With a seed that has shown each.
MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    (nothing_is_fenced, 91),
    (nothing_is_submitted_again, 10),
    (the_end_is_not_fenced, 25),
    (whatever_is_heard_is_believed, 5),
    (a_new_subscription_is_no_reason_to_ask, 19),
    (nothing_is_restored, 35),
    (restored_tokens_are_only_added, 21600),
    (the_reply_is_what_a_worker_holds, 24),
    (a_repeated_claim_is_a_death, 1583),
    (a_duplicate_steals, 90),
    (a_lost_id_stays_lost, 35),
    (only_queued_jobs_are_looked_for, 1571),
    (deaths_are_not_counted, 1),
    (suspects_wait_together, 97),
    (the_dead_are_not_reaped, 1),
    (a_lapsed_lease_is_renewed, 1),
    (bytes_are_regrouped, 4),
    (what_has_ended_is_forgotten, 338),
    (what_is_unknown_is_cancelled, 5272),
    (only_the_store_is_asked, 10),
    (a_key_is_not_given_back, 16),
    (a_lost_submit_stays_in_the_gauge, 0),
    (half_an_end_stays_half, 19),
    (a_client_reads_before_the_store_knows, 196),
    (void_tokens_are_kept, 16),
    (what_was_read_begins_again, 71),
    (nothing_is_run_again, 16),
)
