"""The promise that every transport makes: how jobs go down to workers and events come up to gateways.

A transport is a store of durable requests with a queue and a channel. Its methods are the verbs of
`docs/protocol.md`; the in-memory transport is their reference, the Redis one their distributed form, and
`tests/contract` runs one suite over both. A transport of your own passes that suite too.

What must hold, whatever dies:

* **The log is the truth.** Every event is appended to its job's log and published, in this order. `on_event` may
  miss events (`on_reset` reports that), may repeat them and may show those of a fenced attempt; `read` never does.
* **Exactly one terminal event** per submitted job; nothing is appended after it.
* **Fencing.** Every claim raises the job's attempt; events of an older attempt are refused, and `emit` returns the id.
* **What a worker holds is its list**, not the reply it got: `take` returns the whole list, every time.
* **A verb whose outcome is unknown** raises `StoreUnavailable` and is safe to call again.

Times that cross (`created_at`, …) are seconds since 1970 on the store's own clock, never a process' own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from penstock.event import Done, Event, Failed, Terminal
from penstock.fleet import Pool, WorkerInfo
from penstock.job import CancelReason, Claim, Job
from penstock.rich_token import Token
from penstock.transports.quota import Share

State = Literal["queued", "running", "done"]
Level = Literal["ok", "warning", "error"]
EndReason = Literal[CancelReason, "no_workers"]
CancelOutcome = Literal["ended", "marked", "done", "gone", "owned", "running"]

NO_SHARE = Share()
LEASE_S = 2.5
RENEW_S = 0.5
TICK_S = 0.5
MAX_DEATHS_IN_A_ROW = 3
MAX_DEATHS = 10
LATE_SLACK_S = 4.0  # a worker that lives has ended what is late by then; from then on a gateway may
LATE = "The request did not finish within its timeout_s (default: PENSTOCK_DEFAULT_TIMEOUT_S)."
NO_WORKERS = "No worker has come to run this in time (PENSTOCK_NO_WORKER_GRACE_S)."


class Record(Struct, frozen=True, kw_only=True):
    """One job as the store has it: its state and (a part of) its log.

    `first_token_at` is written with the job's end, so it is 0 until then, and where the worker that knew it has died.
    `cancel`: the reason for which its worker has been asked to end it, "" for none.
    """

    job: Job
    state: State
    attempt: int
    owner: str
    worker: str = ""
    num_claims: int = 0
    num_deaths: int = 0
    created_at: float
    deadline_at: float
    started_at: float = 0.0
    first_token_at: float = 0.0
    ended_at: float = 0.0
    now: float = 0.0
    cancel: EndReason | Literal[""] = ""
    events: tuple[Event, ...] = ()


class JobSummary(Struct, frozen=True, kw_only=True):
    """One job as a list shows it: small fields only, never its prompt, its messages or its answer.

    `num_tokens`: how many tokens the log has; 0 where `end` has the number. `end`: the terminal event without tokens.
    """

    id: str
    model: str
    caller: str = ""
    user: str = ""
    metadata: dict[str, str] = {}
    state: State
    worker: str = ""
    num_claims: int = 0
    num_deaths: int = 0
    created_at: float
    deadline_at: float
    started_at: float = 0.0
    first_token_at: float = 0.0
    ended_at: float = 0.0
    now: float = 0.0
    num_tokens: int = 0
    end: Terminal | None = None

    @classmethod
    def of(cls, record: Record) -> JobSummary:
        """The same, from a record that was read whole."""
        job, last = record.job, record.events[-1] if record.events else None
        end = msgspec.structs.replace(last, tokens=()) if isinstance(last, Done | Failed) else None
        return cls(
            id=job.id,
            model=job.model,
            caller=job.caller,
            user=job.user,
            metadata=job.metadata,
            state=record.state,
            worker=record.worker,
            num_claims=record.num_claims,
            num_deaths=record.num_deaths,
            created_at=record.created_at,
            deadline_at=record.deadline_at,
            started_at=record.started_at,
            first_token_at=record.first_token_at,
            ended_at=record.ended_at,
            now=record.now,
            num_tokens=last.end if last is not None and end is None else 0,
            end=end,
        )


class Outcome(Struct, frozen=True, kw_only=True):
    """How a request ended, as its gateway knows it: all that is needed to make a store know it again.

    `attempt`: the highest that was seen. `end` carries no tokens: `tokens` are all of them. Ages in seconds, None for
    what did not happen. `keep_s`: how much longer it is to be kept.
    """

    job: Job
    attempt: int
    tokens: Sequence[Token]
    end: Terminal
    keep_s: float
    created_ago_s: float
    started_ago_s: float | None = None
    first_token_ago_s: float | None = None
    ended_ago_s: float = 0.0


class Bound(Struct, frozen=True, kw_only=True):
    """The request that an idempotency key names. `age_s`: since it was bound, on the store's clock."""

    job_id: str
    body_hash: str
    age_s: float


class Renewal(Struct, frozen=True, kw_only=True):
    """The result of a renewal of a worker's lease.

    `is_lost`: the lease had lapsed; drop everything and start again under a new id. `held`: the worker's whole list.
    `dead`: workers to reap. `cancelled`: running jobs that this worker is to end. `gone`: running jobs that the store
    no longer has, or that are no longer this worker's.
    """

    is_lost: bool
    held: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    cancelled: dict[str, CancelReason] = {}
    gone: tuple[str, ...] = ()


class Holding(Struct, frozen=True, kw_only=True):
    """A worker and the ids in its list. `lease_s`: what is left of its lease, negative when it has lapsed."""

    worker: str
    lease_s: float
    held: tuple[str, ...] = ()
    info: WorkerInfo | None = None


class Overview(Struct, frozen=True, kw_only=True):
    """A look at a pool, for people. `gateways`: id and what is left of its lease, seconds."""

    depth: int
    num_taken: int
    gateways: dict[str, float] = {}
    workers: tuple[Holding, ...] = ()
    oldest: str = ""
    num_dead: int = 0


UNREADABLE = "unreadable"


class DeadJob(Struct, frozen=True, kw_only=True):
    """An entry of the dead-letter list: a request that ended several workers (`request_poisoned`), or cannot be read
    (`UNREADABLE`, with the `reason`). Never holds the prompt. An `id` that is not UTF-8 has its bytes escaped.
    """

    id: str
    model: str
    deaths: int
    error: str = ""
    reason: str = ""


class Finding(Struct, frozen=True, kw_only=True):
    """The result of one check. `level`: how bad it is; `advice`: what to do about it, empty if nothing."""

    name: str
    level: Level
    value: str
    advice: str = ""


def engines_finding(workers: Iterable[WorkerInfo]) -> Finding | None:
    """The engines of these live workers' models; None where no model runs at engines in other processes."""
    pool = Pool(depth=0, workers=tuple(workers))
    engines, down = pool.engines, pool.without_engine
    if not engines:
        return None
    value = ", ".join(f"{name} {seen.num_up} of {seen.num} up" for name, seen in sorted(engines.items()))
    if all(seen.num_up == seen.num for seen in engines.values()):
        return Finding(name="engines", level="ok", value=value)
    advice = "The worker's log and penstock_upstream_up name the upstream that is ejected. Does it run, and answer?"
    if down:
        return Finding(name="engines", level="error", value=value, advice=f"{', '.join(down)} cannot run. {advice}")
    return Finding(name="engines", level="warning", value=value, advice=f"The others do all the work. {advice}")


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, the worst level first."""
    order: tuple[Level, ...] = ("error", "warning", "ok")
    return sorted(findings, key=lambda finding: order.index(finding.level))


class RateLimit(Struct, frozen=True):
    """`rpm` requests a minute, sustained; `burst` of them may come at once."""

    rpm: int
    burst: int


class Verdict(Struct, frozen=True):
    """The limiter's answer. `reset_s`: until the full burst is there again; `retry_after_s`: 0 when allowed."""

    is_allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float = 0.0


class Store(ABC):
    """The verbs of every process, whatever its part. One instance serves one process.

    Every coroutine of a store raises `StoreUnavailable` when it cannot be reached or refuses for memory.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect. Waits for nothing else; raises if the store is not there yet."""

    @abstractmethod
    async def close(self) -> None:
        """Close every connection and end every task. Leases lapse by themselves."""

    async def check(self) -> None:  # noqa: B027 - most stores have nothing to refuse
        """`ConfigError` for a store that would lose requests silently. Called once, after `open`."""

    @abstractmethod
    async def watch(self, process_id: str, on_cancel: Callable[[str, CancelReason], None]) -> None:
        """Call `on_cancel` on each hint that a job which this worker runs, or this gateway owns, is cancelled.

        Hints may be lost: `renew` returns the same to a worker a little later, `read` to a gateway.
        """


class GatewayStore(Store):
    """The verbs of a gateway: requests go in, events come out, and lost requests are given back."""

    @abstractmethod
    async def listen(self, gateway_id: str, on_event: Callable[[Event], None], on_reset: Callable[[], None]) -> None:
        """Subscribe once to the events of every job whose id begins with `gateway_id`; return when confirmed.

        `on_event` is called in order of arrival and must not block. After a broken subscription the transport
        subscribes again by itself and calls `on_reset`: each stream may have missed events until its log is read again.
        """

    @property
    @abstractmethod
    def is_listening(self) -> bool:
        """Whether the subscription is confirmed right now."""

    @abstractmethod
    async def tick(self, gateway_id: str) -> Pool:
        """Renew this gateway's lease and look at the pool. `ConfigError` if the pool speaks another protocol."""

    @abstractmethod
    async def charge(self, key: str, limit: RateLimit, cost: int = 1) -> Verdict:
        """Count `cost` requests of `key` against `limit` (GCRA), all or none, shared by every gateway.

        A negative `cost` gives back what was counted before.
        """

    @abstractmethod
    async def submit(
        self, job: Job, owner: str, max_depth: int, *, floor: int = 0, front: bool = False, share: Share = NO_SHARE
    ) -> int:
        """Create the job and push its id to the tail; return the depth after it. Safe to repeat.

        Exact over any number of gateways: with `max_depth` ids waiting it raises `QueueFull`, and leaves nothing
        behind. `max_depth=0` means no limit and `front` the head of the queue: for work that was admitted before.
        `floor`: the highest attempt seen so far, for a job that the store had lost. `share`: what the job's
        caller may have; beyond it `QueueFull` or `StorageQuota`, as exact, and nothing left behind either.
        A job with `stream` False is unread until `mark_read`, or until a gateway adopts it to read it.
        """

    @abstractmethod
    async def read(self, job_id: str, after: tuple[int, int] | None = None, *, job: Job | None = None) -> Record | None:
        """State first, then the log after the entry `(attempt, tokens so far)`; None if the store has no such job.

        `job`: the job if the caller has it, so that it is not read again. Without it the whole job is read, which may
        be as large as a request body, on a way of its own: it does not delay other verbs.
        """

    @abstractmethod
    async def cancel(self, job_id: str, reason: EndReason, owner: str | None = None) -> CancelOutcome:
        """End a queued job at once, with its terminal event; mark a running one and hint to its worker and owner.

        A running job whose deadline has passed `LATE_SLACK_S` ago is ended as well: its worker is dead, or will be
        refused. "no_workers" ends a queued job only; one that runs by now is left alone ("running").

        With an `owner`, a job that another gateway has adopted is left alone ("owned"), and so is, when a client
        leaves, one that another gateway reads too: only the last reader's leaving counts. What a client or an
        operator cancels is kept no longer than a job that names no retention.
        """

    @abstractmethod
    async def adopt(self, job_id: str, gateway_id: str, *, is_read: bool = True) -> bool:
        """From now on this gateway answers for the job, and counts among its readers. False if there is none.

        `is_read`: its client may get tokens, as after `mark_read`.
        """

    @abstractmethod
    async def mark_read(self, job_id: str) -> int:
        """From now on a client may get tokens of this job, so no worker begins it again. Call it before the first one.

        Returns its attempt, 0 if there is none. Earlier attempts may have been begun again: their tokens are void.
        """

    @abstractmethod
    async def follow(self, job_id: str) -> None:
        """Receive this job's events too, though another gateway made its id; return when confirmed (rule 11)."""

    @abstractmethod
    async def unfollow(self, job_id: str) -> None:
        """Stop receiving this job's events."""

    @abstractmethod
    async def requeue_if_missing(self, job_id: str) -> bool:
        """Push the id at the head unless the queue holds it: for an id that is in no list. True if it was pushed."""

    @abstractmethod
    async def restore(self, job: Job, owner: str, tokens: Sequence[Token], attempt: int) -> bool:
        """For a log that lacks tokens its client has: raise the attempt, append all that was relayed, queue it first.

        `tokens` are all tokens that were relayed. False, and nothing done, if the job is done or its attempt is
        higher than `attempt`. With `job.stream` a client may have them; without it none has them through this gateway.
        """

    @abstractmethod
    async def restore_end(self, outcome: Outcome, owner: str) -> bool:
        """For an end that the store may have lost: write the whole log again and set the job `done`.

        Fenced like `restore`: a worker that runs it once more is refused from then on. The terminal event is
        published. False, and nothing done, if the job is done. Safe to repeat.
        """

    @abstractmethod
    async def states(self, job_ids: Sequence[str]) -> dict[str, State]:
        """The state of each job that the store has, or has deleted, by id. Reads one small field a job."""

    @abstractmethod
    async def knows(self, gateway_id: str) -> bool:
        """Whether the store has this gateway's lease, lapsed or not. False after a `tick` means: data has been lost."""

    @abstractmethod
    def retire(self, job_id: str, retention_s: float) -> None:
        """Keep an ended job at most `retention_s` from now, as its client has the last byte.

        Not awaited: if it is lost the job expires a little later.
        """

    def grow(self, job: Job, num_bytes: int, life_s: float) -> None:
        """The answer of a job takes up to `num_bytes` of its caller's share, more than was booked for it so far.

        Never refused: a job that was admitted is not cut. `life_s`: how long it may still be kept, with its retention.
        Not awaited: if it is lost the job counts with less until its answer has doubled, or has ended.
        """

    def weigh(self, job: Job, num_bytes: int, keep_s: float | None) -> None:
        """The job has ended: its answer takes `num_bytes` of its caller's share, until `keep_s` from now.

        None: as long as a job that names no retention is kept. It never raises either number. Not awaited: if it is
        lost the job counts as what was booked for it, until it expires. From then on only `job.kept()` is stored.
        """

    def prolong(self, job: Job, num_bytes: int, life_s: float) -> None:
        """Keep a job that has ended at least `life_s` from now on, since a later one continues it. Not awaited.

        It takes of its caller's share for that long, with `num_bytes` for its answer.
        """

    @abstractmethod
    async def delete(self, job: Job) -> bool:
        """Leave nothing of a job that has ended: from now on reads and lists do not have it, and its share is free.

        `states` has it as `done` for as long as it would have been kept, so that a gateway that remembers it does not
        give it back. False, and nothing done, if it has not ended or is not there. Safe to repeat.
        """

    @abstractmethod
    async def bind_key(self, job: Job, keep_s: float, instead_of: str = "") -> Bound | None:
        """Bind the idempotency key `job.once` of its caller to `job`, for `keep_s` from now.

        None if the key was free, bound to this job already, or bound to `instead_of`, and is the job's now; else what
        it is bound to. Of several simultaneous calls one gets it.
        """

    @abstractmethod
    async def unbind_key(self, job: Job) -> None:
        """Free the idempotency key of a job that was never admitted; nothing if it is bound to another."""


class WorkerStore(Store):
    """The verbs of a worker: its lease, work from the queue, and a place for its events."""

    @abstractmethod
    async def enlist(self, info: WorkerInfo) -> None:
        """Take a lease under a new id. `ConfigError` if live workers of the pool serve other models, by name, or if the
        pool speaks another protocol.
        """

    @abstractmethod
    async def renew(self, info: WorkerInfo, running: Sequence[str]) -> Renewal:
        """Renew the lease; ask which of the `running` jobs are still wanted."""

    @abstractmethod
    async def wait(self, worker_id: str, timeout_s: float) -> str | None:
        """Block until there may be work (it is then in this worker's list) or `timeout_s` has passed.

        Returns the id that was moved into the list (which contains it too), None if it is not known. Call it only with
        a free slot. Never cancel it: let it time out.
        """

    @abstractmethod
    async def take(self, worker_id: str, want: int) -> list[str]:
        """Move up to `want` ids into this worker's list and return the whole list, oldest first."""

    @abstractmethod
    async def claim(self, worker_id: str, ids: Sequence[str]) -> list[Claim]:
        """Claim jobs of this worker's list, raising their attempts and publishing `Started`.

        Ids that are done, gone, poisoned, past their deadline, cancelled, or running at a live worker are removed
        from the list and left out of the answer.
        """

    @abstractmethod
    async def rerun(self, worker_id: str, claims: Sequence[Claim]) -> list[Claim]:
        """Begin again what this worker has claimed and cannot continue, and no client has read.

        Each such job loses its tokens, and `Started` with a `seq` of 0 is published under a higher attempt. Returns its
        new claim; for a job that may have been read the claim that was given. Jobs that this worker no longer runs
        under that claim are left out. After `StoreUnavailable` claim them again.
        """

    @abstractmethod
    async def emit(self, worker_id: str, events: Iterable[Event]) -> set[str]:
        """Append and publish one step's events in one round trip; a terminal event also takes the id off the list.

        Returns the ids whose events were refused (fenced, ended or expired): stop generating those.
        """

    @abstractmethod
    async def hand_back(self, worker_id: str, claims: Sequence[Claim]) -> None:
        """Give work back, unfinished: queued again at the head, oldest first. No death is counted."""

    @abstractmethod
    async def reap(self, dead_worker_id: str) -> int:
        """Move a dead worker's list back to the head of the queue; returns how many ids. 0 if the worker is alive."""

    @abstractmethod
    async def leave(self, worker_id: str) -> None:
        """Give up the lease, after everything was handed back."""

    def clone_for_thread(self) -> WorkerStore | None:
        """A second way to the same store, for the event loop of the lease thread.

        None: the lease is renewed in the worker's own loop.
        """
        return None


class OperatorStore(Store):
    """The verbs for operators: they show the queue, the workers, lists of requests, the dead-letter list, the server.

    They change nothing except the dead-letter list.
    """

    @abstractmethod
    async def overview(self) -> Overview:
        """The gateways, the workers and the ids that each worker holds."""

    @abstractmethod
    async def waiting(self, limit: int = 10_000) -> list[str]:
        """Ids in the queue, the next one first."""

    @abstractmethod
    async def requests_of(self, caller: str, limit: int) -> list[str]:
        """Ids of the caller's newest requests, newest first; some may have expired. At most 1,000 are kept."""

    @abstractmethod
    async def read_summary(self, job_ids: Sequence[str]) -> list[JobSummary | None]:
        """The summary of each job, None for one that the store does not have. Made of a record: `JobSummary.of`.

        The cost does not grow with a job or its answer, except in a store that cannot read parts.
        """

    @abstractmethod
    async def dead(self) -> list[DeadJob]:
        """The dead-letter list, newest first; it keeps at most 1,000 requests."""

    @abstractmethod
    async def remove_dead(self, job_id: str) -> bool:
        """Remove a request from the dead-letter list. False if it is not there."""

    @abstractmethod
    async def inspect(self) -> list[Finding]:
        """Check the server, its settings, its clock and its response time.

        A store that cannot be reached is a finding of level `error`, not an exception.
        """


class Transport(GatewayStore, WorkerStore, OperatorStore):
    """The whole store: the three promises over the same data, for a process that is put together from both sides.

    What runs in it asks for the one promise that it needs.
    """
