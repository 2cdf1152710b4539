"""The transport inside one process: the embedded default, and the reference of what every verb means.

One instance is shared by the gateway(s) and worker(s) of one process. It keeps the same data model as Redis (jobs
with a log, a queue of ids, a list for each worker, leases) in plain dicts, so that the results of the contract suite
and the simulation hold for both. Its clock is an argument. Nothing here survives the process.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeGuard

import msgspec

from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    NoWorkers,
    PenstockError,
    RequestPoisoned,
    StoreUnavailable,
)
from penstock.event import Done, Event, Failed, Started, Terminal, Tokens, fold
from penstock.fleet import Pool, WorkerInfo
from penstock.job import CancelReason, Claim, Job
from penstock.rich_token import Token
from penstock.transports.base import (
    LATE,
    LATE_SLACK_S,
    LEASE_S,
    MAX_DEATHS,
    MAX_DEATHS_IN_A_ROW,
    NO_SHARE,
    NO_WORKERS,
    Bound,
    CancelOutcome,
    DeadJob,
    EndReason,
    Finding,
    Holding,
    JobSummary,
    Outcome,
    Overview,
    RateLimit,
    Record,
    Renewal,
    State,
    Transport,
    Verdict,
)
from penstock.transports.gcra import gcra
from penstock.transports.memory_state import BoundKey, Entry, Snapshot, WorkerLease
from penstock.transports.quota import REQUEST_BYTES, Books, Share, booked_answer_bytes, queue_full
from penstock.wire import encode_json

_FORGET_WORKER_S = 10.0
_FORGET_GATEWAY_S = 600.0
_PULSE_GAP_S = 1.5
_MAX_DEAD = 1000
_KEEP_DEAD_S = 86_400.0
_MAX_LISTED = 1000
# After publishing, `emit` yields these many loop turns so that readers run and the tokens generated meanwhile share the
# next write. No event is held back for it. Without it an engine that needs no time would have every token written alone
# (c=32, no compute: 26 k against 55 k tokens/s).
_READERS_TURNS = 4


class MemoryTransport(Transport):
    """`transports/base.py` has the contract of each verb."""

    def __init__(
        self,
        *,
        retention_s: float = 60.0,
        lease_s: float = LEASE_S,
        max_bytes: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes`: the most that is kept of all callers, jobs and answers; 0 for no limit."""
        self._retention_s = retention_s
        self._max_bytes = max_bytes
        self._books = Books()
        self._lease_s = lease_s
        self._now = now
        self._jobs: dict[str, Entry] = {}
        self._queue: deque[str] = deque()
        self._lists: dict[str, list[str]] = {}
        self._workers: dict[str, WorkerLease] = {}
        self._gateways: dict[str, float] = {}
        self._listeners: dict[str, Callable[[Event], None]] = {}
        self._hints: dict[str, Callable[[str, CancelReason], None]] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._expiry: list[tuple[float, str]] = []
        self._tats: dict[str, float] = {}
        self._num_taken = 0
        self._pulse_at = now()
        self._amnesty_until = 0.0
        self._bound: dict[tuple[str, str], BoundKey] = {}
        self._dead: deque[DeadJob] = deque(maxlen=_MAX_DEAD)

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        self._listeners.clear()
        self._hints.clear()

    def snapshot(self) -> Snapshot:
        """A copy of its present content."""
        return Snapshot(
            jobs={job_id: entry.copy() for job_id, entry in self._jobs.items()},
            queue=list(self._queue),
            lists={worker_id: list(held) for worker_id, held in self._lists.items()},
            workers={worker_id: replace(lease) for worker_id, lease in self._workers.items()},
            gateways=dict(self._gateways),
            bound={name: replace(bound) for name, bound in self._bound.items()},
            pulse_at=self._pulse_at,
            amnesty_until=self._amnesty_until,
        )

    def load(self, state: Snapshot) -> None:
        """Hold this from now on, as a Redis does that comes back with an older state, or empty."""
        for job_id, entry in self._jobs.items():
            if job_id not in state.jobs:
                self._books.unbook(entry.job)
        for job_id, entry in state.jobs.items():
            if job_id not in self._jobs:
                size = REQUEST_BYTES + len(encode_json(entry.job))
                self._books.book(entry.job, size, booked_answer_bytes(entry.job))
        self._jobs = {job_id: entry.copy() for job_id, entry in state.jobs.items()}
        self._queue = deque(state.queue)
        self._lists = {worker_id: list(held) for worker_id, held in state.lists.items()}
        self._workers = {worker_id: replace(lease) for worker_id, lease in state.workers.items()}
        self._gateways = dict(state.gateways)
        self._bound = {name: replace(bound) for name, bound in state.bound.items()}
        self._pulse_at, self._amnesty_until = state.pulse_at, state.amnesty_until
        self._expiry = sorted((entry.expires_at, job_id) for job_id, entry in self._jobs.items())

    # ── a gateway's verbs ────────────────────────────────────────────────────────────────────────────────────────

    async def listen(self, gateway_id: str, on_event: Callable[[Event], None], on_reset: Callable[[], None]) -> None:
        self._listeners[gateway_id] = on_event

    @property
    def is_listening(self) -> bool:
        return bool(self._listeners)

    async def submit(
        self, job: Job, owner: str, max_depth: int, *, floor: int = 0, front: bool = False, share: Share = NO_SHARE
    ) -> int:
        now = self._sweep()
        if max_depth and len(self._queue) >= max_depth:
            raise queue_full(max_depth)
        if job.id not in self._jobs:
            size = REQUEST_BYTES + len(encode_json(job))
            self._judge(job, size + booked_answer_bytes(job), share, now)
            self._make(job, owner, now, size).attempt = floor
        self._push(job.id, front)
        return len(self._queue)

    async def restore(self, job: Job, owner: str, tokens: Sequence[Token], attempt: int) -> bool:
        now = self._sweep()
        entry = self._jobs.get(job.id)
        if entry is None:
            entry = self._make(job, owner, now, REQUEST_BYTES + len(encode_json(job)))
        elif entry.state == "queued" and entry.restored == (attempt, entry.attempt):  # the caller had no answer
            await self.requeue_if_missing(job.id)
            return True
        elif entry.state == "done" or entry.attempt > attempt:
            return False
        self._raise_attempt(entry, attempt)
        entry.state, entry.worker, entry.restored = "queued", "", (attempt, entry.attempt)
        self._books.grow(job, booked_answer_bytes(job, len(tokens)))
        entry.is_unread = entry.is_unread and not job.stream
        # All of them: if the short attempt continued meanwhile, the log differs from the relayed tokens.
        self._append(entry, Tokens(job.id, entry.attempt, 0, tokens=tuple(tokens)), publish=False)
        self._push(job.id, front=True)
        return True

    async def restore_end(self, outcome: Outcome, owner: str) -> bool:
        now = self._sweep()
        job, entry = outcome.job, self._jobs.get(outcome.job.id)
        if entry is not None and entry.state == "done":
            return False
        if entry is None:
            created_at = now - outcome.created_ago_s
            entry = Entry(job, owner, created_at, created_at + job.timeout_s, now + outcome.keep_s)
            entry.num_claims = 1
            self._jobs[job.id] = entry
        self._raise_attempt(entry, outcome.attempt)
        self._unqueue(job.id)
        entry.worker = ""
        entry.started_at = entry.started_at or _ago(now, outcome.started_ago_s)
        entry.first_token_at = entry.first_token_at or _ago(now, outcome.first_token_ago_s)
        if outcome.tokens:
            self._append(entry, Tokens(job.id, entry.attempt, 0, tokens=tuple(outcome.tokens)), publish=False)
        num = len(outcome.tokens)
        self._finish(entry, msgspec.structs.replace(outcome.end, attempt=entry.attempt, seq=num, tokens=()))
        entry.ended_at = now - outcome.ended_ago_s
        self._expire_at(entry, now + outcome.keep_s)
        return True

    async def states(self, job_ids: Sequence[str]) -> dict[str, State]:
        self._sweep()
        return {job_id: entry.state for job_id in job_ids if (entry := self._jobs.get(job_id)) is not None}

    async def knows(self, gateway_id: str) -> bool:
        return gateway_id in self._gateways

    async def read(self, job_id: str, after: tuple[int, int] | None = None, *, job: Job | None = None) -> Record | None:
        self._sweep()
        entry = self._jobs.get(job_id)
        if entry is None or entry.is_deleted:
            return None
        log = entry.log if after is None else [e for e in entry.log if (e.attempt, e.end) > after or _ends(e)]
        return Record(
            job=entry.job,
            state=entry.state,
            attempt=entry.attempt,
            owner=entry.owner,
            worker=entry.worker,
            num_claims=entry.num_claims,
            num_deaths=entry.num_deaths,
            created_at=entry.created_at,
            deadline_at=entry.deadline_at,
            started_at=entry.started_at,
            first_token_at=entry.first_token_at,
            ended_at=entry.ended_at,
            now=self._now(),
            cancel=entry.cancel or "",
            events=tuple(log),
        )

    async def cancel(self, job_id: str, reason: EndReason, owner: str | None = None) -> CancelOutcome:
        entry = self._jobs.get(job_id)
        if entry is None:
            return "gone"
        if entry.state == "done":
            return "done"
        if owner is not None and reason == "client" and entry.readers:
            entry.readers = [reader for reader in entry.readers if reader != owner]
            if entry.readers:
                entry.owner = entry.readers[-1] if entry.owner == owner else entry.owner
                return "owned"
        elif owner is not None and owner != entry.owner:
            return "owned"
        if reason in ("client", "operator"):
            entry.retention_s = min(entry.retention_s, self._retention_s)
        is_overdue = reason == "deadline" and self._now() >= entry.deadline_at + LATE_SLACK_S
        if entry.state == "queued" or is_overdue:
            self._end(entry, reason)
            self._unqueue(job_id)
            return "ended"
        if reason == "no_workers":
            return "running"
        entry.cancel = entry.cancel or reason
        for process in (entry.worker, entry.owner):
            if (hint := self._hints.get(process)) is not None:
                asyncio.get_running_loop().call_soon(hint, job_id, entry.cancel)
        return "marked"

    async def adopt(self, job_id: str, gateway_id: str, *, is_read: bool = True) -> bool:
        entry = self._jobs.get(job_id)
        if entry is not None:
            entry.readers = [*(entry.readers or [entry.owner]), gateway_id]
            entry.owner = gateway_id
            entry.is_unread = entry.is_unread and not is_read
        return entry is not None

    async def mark_read(self, job_id: str) -> int:
        entry = self._jobs.get(job_id)
        if entry is None:
            return 0
        entry.is_unread = False
        return entry.attempt

    async def requeue_if_missing(self, job_id: str) -> bool:
        is_missing = job_id not in self._queue
        if is_missing:
            self._push(job_id, front=True)
        return is_missing

    def retire(self, job_id: str, retention_s: float) -> None:
        entry = self._jobs.get(job_id)
        if entry is not None and entry.state == "done":
            self._expire_at(entry, self._now() + retention_s)

    def grow(self, job: Job, num_bytes: int, life_s: float) -> None:
        self._books.grow(job, num_bytes)

    def weigh(self, job: Job, num_bytes: int, keep_s: float | None) -> None:
        entry = self._jobs.get(job.id)
        if entry is not None and entry.state == "done" and not entry.is_deleted:
            kept = entry.job = job.kept()
            self._books.weigh(job, None if kept is job else REQUEST_BYTES + len(encode_json(kept)), num_bytes)

    def prolong(self, job: Job, num_bytes: int, life_s: float) -> None:
        entry = self._jobs.get(job.id)
        if entry is not None and entry.state == "done":
            self._expire_at(entry, max(entry.expires_at, self._now() + life_s))

    async def delete(self, job: Job) -> bool:
        self._sweep()
        entry = self._jobs.get(job.id)
        if entry is None or entry.state != "done":
            return False
        self._books.unbook(job)
        entry.is_deleted, entry.job, entry.log = True, Job(id=job.id, model=job.model, caller=job.caller), []
        return True

    async def tick(self, gateway_id: str) -> Pool:
        now = self._beat()
        is_new = gateway_id not in self._gateways
        self._gateways[gateway_id] = now + self._lease_s
        for gid, lapses_at in list(self._gateways.items()):
            if now - lapses_at > _FORGET_GATEWAY_S:
                del self._gateways[gid]
        return Pool(
            depth=len(self._queue),
            workers=tuple(
                lease.info for wid, lease in self._workers.items() if lease.info is not None and self._is_live(wid)
            ),
            num_taken=self._num_taken,
            is_new=is_new,
            at=now,
        )

    async def follow(self, job_id: str) -> None:
        """Nothing to do: every gateway of this process receives the events of every job that it owns."""

    async def unfollow(self, job_id: str) -> None:
        """Nothing to do, as for `follow`."""

    async def bind_key(self, job: Job, keep_s: float, instead_of: str = "") -> Bound | None:
        now = self._sweep()
        key, _, body_hash = job.once.partition(" ")
        bound = self._bound.get((job.caller, key))
        if bound is not None and bound.expires_at > now and bound.job_id not in (job.id, instead_of):
            return Bound(job_id=bound.job_id, body_hash=bound.body_hash, age_s=now - bound.bound_at)
        bound_at = bound.bound_at if bound is not None and bound.job_id == job.id else now
        self._bound = {name: kept for name, kept in self._bound.items() if kept.expires_at > now}
        self._bound[job.caller, key] = BoundKey(job.id, body_hash, bound_at, now + keep_s)
        return None

    async def unbind_key(self, job: Job) -> None:
        name = job.caller, job.once.partition(" ")[0]
        if (bound := self._bound.get(name)) is not None and bound.job_id == job.id:
            del self._bound[name]

    async def requests_of(self, caller: str, limit: int) -> list[str]:
        self._sweep()
        newest = sorted(
            (entry for entry in reversed(self._jobs.values()) if entry.job.caller == caller and not entry.is_deleted),
            key=lambda entry: entry.created_at,
            reverse=True,
        )
        return [entry.job.id for entry in newest[: min(limit, _MAX_LISTED)]]

    async def read_summary(self, job_ids: Sequence[str]) -> list[JobSummary | None]:
        records = [await self.read(job_id) for job_id in job_ids]
        return [None if record is None else JobSummary.of(record) for record in records]

    async def waiting(self, limit: int = 10_000) -> list[str]:
        return list(islice(self._queue, limit))

    # ── an operator's verbs ──────────────────────────────────────────────────────────────────────────────────────

    async def overview(self) -> Overview:
        now = self._now()
        return Overview(
            depth=len(self._queue),
            num_taken=self._num_taken,
            gateways={gid: at - now for gid, at in self._gateways.items()},
            workers=tuple(
                Holding(
                    worker=wid, lease_s=lease.lapses_at - now, held=tuple(self._lists.get(wid, ())), info=lease.info
                )
                for wid, lease in self._workers.items()
                if lease.info is not None
            ),
            oldest=self._queue[0] if self._queue else "",
            num_dead=len(self._dead),
        )

    async def dead(self) -> list[DeadJob]:
        return list(self._dead)

    async def remove_dead(self, job_id: str) -> bool:
        found = next((job for job in self._dead if job.id == job_id), None)
        if found is not None:
            self._dead.remove(found)
        return found is not None

    async def inspect(self) -> list[Finding]:
        return [
            Finding(name="store", level="ok", value="memory of this process", advice="It ends with the process."),
            Finding(name="requests kept", level="ok", value=f"{len(self._jobs)}, {self._books.total} bytes"),
        ]

    async def charge(self, key: str, limit: RateLimit, cost: int = 1) -> Verdict:
        now = self._now()
        if len(self._tats) > 10_000:
            self._tats = {k: tat for k, tat in self._tats.items() if tat > now}
        verdict, self._tats[key] = gcra(self._tats.get(key, 0.0), now, limit, cost)
        return verdict

    # ── a worker's verbs ─────────────────────────────────────────────────────────────────────────────────────────

    async def enlist(self, info: WorkerInfo) -> None:
        self._beat()
        for wid, lease in self._workers.items():
            if lease.info is not None and self._is_live(wid) and lease.info.models.keys() != info.models.keys():
                others, own = (", ".join(sorted(one.models)) for one in (lease.info, info))
                raise ConfigError(
                    f"Worker {wid} of this pool serves {others} and this one would serve {own}: workers of one pool "
                    "must agree on their models, or have pools of their own (PENSTOCK_POOL)."
                )
        self._workers[info.id] = WorkerLease(info, self._now() + self._lease_s)

    async def renew(self, info: WorkerInfo, running: Sequence[str]) -> Renewal:
        now = self._beat()
        if not self._is_live(info.id) and now > self._amnesty_until:
            return Renewal(is_lost=True)
        self._workers[info.id] = WorkerLease(info, now + self._lease_s)
        for wid, lease in list(self._workers.items()):
            if now - lease.lapses_at > _FORGET_WORKER_S and not self._lists.get(wid):
                del self._workers[wid]
        cancelled: dict[str, CancelReason] = {}
        gone = []
        for job_id in running:
            entry = self._jobs.get(job_id)
            if entry is None or entry.state != "running" or entry.worker != info.id:
                gone.append(job_id)
            elif entry.cancel is not None:
                cancelled[job_id] = entry.cancel
        return Renewal(
            is_lost=False,
            held=tuple(self._lists.get(info.id, ())),
            dead=tuple(wid for wid in self._workers if not self._is_live(wid)),
            cancelled=cancelled,
            gone=tuple(gone),
        )

    async def watch(self, process_id: str, on_cancel: Callable[[str, CancelReason], None]) -> None:
        self._hints[process_id] = on_cancel

    async def wait(self, worker_id: str, timeout_s: float) -> str | None:
        if not self._queue:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await asyncio.wait_for(waiter, timeout_s)
            except TimeoutError:
                return None
        if not self._queue:  # another worker was quicker
            return None
        job_id = self._queue[0]
        self._move(worker_id, 1)
        return job_id

    async def take(self, worker_id: str, want: int) -> list[str]:
        if self._is_live(worker_id):
            self._move(worker_id, want)
        return list(self._lists.get(worker_id, ()))

    async def claim(self, worker_id: str, ids: Sequence[str]) -> list[Claim]:
        now = self._sweep()
        claims = []
        for job_id in dict.fromkeys(ids):
            claim = self._claim_one(worker_id, job_id, now)
            if claim is None:
                self._unlist(worker_id, job_id)
            else:
                claims.append(claim)
        return claims

    async def rerun(self, worker_id: str, claims: Sequence[Claim]) -> list[Claim]:
        left = []
        for claim in claims:
            entry = self._jobs.get(claim.job.id)
            if entry is None or entry.state != "running" or (entry.worker, entry.attempt) != (worker_id, claim.attempt):
                continue
            if entry.is_unread:
                self._raise_attempt(entry)
                entry.log.clear()
                entry.first_token_at = 0.0
                self._append(entry, Started(claim.job.id, entry.attempt, 0))
                claim = claim.rerun(entry.attempt)
            left.append(claim)
        return left

    async def emit(self, worker_id: str, events: Iterable[Event]) -> set[str]:
        refused: set[str] = set()
        for event in events:
            entry = self._jobs.get(event.job_id)
            if entry is None or entry.state != "running" or entry.attempt != event.attempt:
                if entry is None or not entry.log or entry.log[-1] != event:
                    refused.add(event.job_id)  # its id stays in the list: what is in there is claimed again
                elif _ends(event):  # repeated: it had gone through
                    self._unlist(worker_id, event.job_id)
            elif event.seq > entry.num_tokens:  # the store has gone back in time: tokens before these are missing
                refused.add(event.job_id)
            elif _ends(event):
                self._finish(entry, event)
                self._unlist(worker_id, event.job_id)
            elif event.end > entry.num_tokens:
                self._append(entry, event)
        for _ in range(_READERS_TURNS):
            await asyncio.sleep(0)
        return refused

    async def hand_back(self, worker_id: str, claims: Sequence[Claim]) -> None:
        for claim in reversed(claims):
            entry = self._jobs.get(claim.job.id)
            if entry is not None and entry.state == "running" and entry.attempt == claim.attempt:
                entry.state, entry.worker = "queued", ""
            if self._unlist(worker_id, claim.job.id) and entry is not None and entry.state == "queued":
                self._push(claim.job.id, front=True)

    async def reap(self, dead_worker_id: str) -> int:
        return 0 if self._is_live(dead_worker_id) else self._give_back_list(dead_worker_id)

    async def leave(self, worker_id: str) -> None:
        self._hints.pop(worker_id, None)
        if worker_id in self._workers:
            self._workers[worker_id] = WorkerLease(None, self._now())
        self._give_back_list(worker_id)

    # ── below the verbs ──────────────────────────────────────────────────────────────────────────────────────────

    def _claim_one(self, worker_id: str, job_id: str, now: float) -> Claim | None:
        entry = self._jobs.get(job_id)
        if entry is None or entry.state == "done":
            return None
        is_taken_over = entry.state == "running" and entry.worker != worker_id
        if is_taken_over and self._is_live(entry.worker) and job_id in self._lists.get(entry.worker, ()):
            return None
        if entry.cancel is not None or now >= entry.deadline_at:
            self._end(entry, entry.cancel or "deadline")
            return None
        if is_taken_over and not self._may_live(entry.worker):
            entry.num_deaths += 1
            entry.deaths_in_a_row = 0 if entry.num_tokens > entry.tokens_at_claim else entry.deaths_in_a_row + 1
            if entry.deaths_in_a_row >= MAX_DEATHS_IN_A_ROW or entry.num_deaths >= MAX_DEATHS:
                self._poison(entry)
                return None
        self._raise_attempt(entry)
        entry.state, entry.worker = "running", worker_id
        entry.num_claims += 1
        entry.tokens_at_claim = entry.num_tokens
        entry.started_at = entry.started_at or now
        tokens = fold(entry.log).tokens if entry.num_tokens else ()
        self._append(entry, Started(job_id, entry.attempt, entry.num_tokens))
        return Claim(
            job=entry.job,
            attempt=entry.attempt,
            deadline_at=time.monotonic() + entry.deadline_at - now,
            tokens=tokens,
            queued_s=now - entry.created_at,
            num_deaths=entry.deaths_in_a_row,
        )

    def _judge(self, job: Job, wanted: int, share: Share, now: float) -> None:
        """Raises if there is no room for the job in its caller's share, or in the memory of this process."""
        if share.max_queued and job.caller and len(self._queue) >= share.max_queued:
            waiting = (self._jobs.get(job_id) for job_id in self._queue)
            if sum(entry is not None and entry.job.caller == job.caller for entry in waiting) >= share.max_queued:
                raise share.queue_full()
        num, num_bytes = self._books.num(job.caller), self._books.bytes_of(job.caller)
        if not share.has_room(num, num_bytes, wanted):
            mine = (entry.expires_at for entry in self._jobs.values() if entry.job.caller == job.caller)
            raise share.refusal(num, num_bytes, wanted, min(mine, default=now) - now)
        if 0 < self._max_bytes < self._books.total + wanted:
            raise StoreUnavailable(
                f"The memory for requests is full: {self._books.total} bytes are kept, this one may need {wanted}, and "
                f"at most {self._max_bytes} are kept (PENSTOCK_MAX_MEMORY_BYTES). Requests make room as they expire.",
                retry_after_s=1.0,
            )

    def _make(self, job: Job, owner: str, now: float, size: int) -> Entry:
        deadline, retention_s = now + job.timeout_s, self._retention_s if job.retention_s is None else job.retention_s
        entry = Entry(
            *(job, owner, now, deadline, deadline + retention_s), retention_s=retention_s, is_unread=not job.stream
        )
        self._jobs[job.id] = entry
        self._books.book(job, size, booked_answer_bytes(job))
        heapq.heappush(self._expiry, (entry.expires_at, job.id))
        return entry

    def _raise_attempt(self, entry: Entry, floor: int = 0) -> None:
        entry.attempt = max(entry.attempt + 1, floor + 1, int(self._now() * 1000))

    def _append(self, entry: Entry, event: Event, publish: bool = True) -> None:
        entry.log.append(event)
        if event.end and not entry.num_tokens:
            entry.first_token_at = entry.first_token_at or self._now()
        entry.num_tokens = event.end
        if publish:
            minted_by = event.job_id.partition(".")[0]
            for gateway in dict.fromkeys((minted_by, *entry.readers)):
                if (listener := self._listeners.get(gateway)) is not None:
                    listener(event)

    def _finish(self, entry: Entry, event: Terminal) -> None:
        entry.state, entry.ended_at = "done", self._now()
        self._append(entry, event)
        self._expire_at(entry, entry.ended_at + entry.retention_s)

    def _end(self, entry: Entry, reason: EndReason) -> None:
        """End a job that no worker runs, fenced first so that none can write behind the end."""
        self._raise_attempt(entry)
        error: PenstockError | None = None
        if reason == "deadline":
            error = DeadlineExceeded(LATE)
        elif reason == "no_workers":
            error = NoWorkers(NO_WORKERS)
        if error is not None:
            self._finish(entry, Failed.of(entry.job.id, entry.attempt, entry.num_tokens, error))
        else:
            self._finish(entry, Done(entry.job.id, entry.attempt, entry.num_tokens, finish_reason="cancelled"))

    def _poison(self, entry: Entry) -> None:
        self._raise_attempt(entry)
        error = RequestPoisoned(f"The request ended {entry.num_deaths} workers and will not be tried again.")
        self._finish(entry, Failed.of(entry.job.id, entry.attempt, entry.num_tokens, error))
        self._expire_at(entry, entry.ended_at + _KEEP_DEAD_S)  # so that an operator can look at it or run it again
        dead = DeadJob(id=entry.job.id, model=entry.job.model, deaths=entry.num_deaths, error=error.code)
        self._dead.appendleft(dead)

    def _push(self, job_id: str, front: bool) -> None:
        if front:
            self._queue.appendleft(job_id)
        else:
            self._queue.append(job_id)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    def _move(self, worker_id: str, want: int) -> None:
        held = self._lists.setdefault(worker_id, [])
        for _ in range(min(want, len(self._queue))):
            held.append(self._queue.popleft())
            self._num_taken += 1
        if not held:
            del self._lists[worker_id]

    def _give_back_list(self, worker_id: str) -> int:
        ids = self._lists.pop(worker_id, [])
        for job_id in reversed(ids):
            self._push(job_id, front=True)
        return len(ids)

    def _unlist(self, worker_id: str, job_id: str) -> bool:
        held = self._lists.get(worker_id, [])
        if job_id not in held:
            return False
        held.remove(job_id)
        if not held:
            del self._lists[worker_id]
        return True

    def _unqueue(self, job_id: str) -> None:
        if job_id in self._queue:
            self._queue.remove(job_id)

    def _is_live(self, worker_id: str) -> bool:
        lease = self._workers.get(worker_id)
        return lease is not None and (lease.lapses_at > self._now() or self._is_amnesty())

    def _may_live(self, worker_id: str) -> bool:
        """Also of one that is unknown: in an amnesty Redis may have lost it. Not of one that has left."""
        lease = self._workers.get(worker_id)
        if lease is not None and lease.info is None:
            return False
        return self._is_live(worker_id) or self._is_amnesty()

    def _is_amnesty(self) -> bool:
        now = self._now()  # a gap in the pool's pulse is an amnesty that has not been written yet
        return now < self._amnesty_until or now - self._pulse_at > _PULSE_GAP_S

    def _beat(self) -> float:
        """After a gap in the pool's pulse no worker is declared dead for one lease."""
        now = self._now()
        if now - self._pulse_at > _PULSE_GAP_S:
            self._amnesty_until = now + self._lease_s
        self._pulse_at = now
        return now

    def _expire_at(self, entry: Entry, at: float) -> None:
        entry.expires_at = at
        heapq.heappush(self._expiry, (at, entry.job.id))

    def _sweep(self) -> float:
        now = self._now()
        while self._expiry and self._expiry[0][0] <= now:
            _, job_id = heapq.heappop(self._expiry)
            entry = self._jobs.get(job_id)
            if entry is not None and entry.expires_at <= now:
                del self._jobs[job_id]
                self._books.unbook(entry.job)
        return now


def _ago(now: float, seconds: float | None) -> float:
    return 0.0 if seconds is None else now - seconds


def _ends(event: Event) -> TypeGuard[Terminal]:
    return isinstance(event, Done | Failed)
