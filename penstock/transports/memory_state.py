"""The data of the memory transport: the data model of Redis in plain objects. Knows no verb."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from penstock.event import Event
from penstock.fleet import WorkerInfo
from penstock.job import CancelReason, Job
from penstock.transports.base import State


@dataclass(slots=True, eq=False)
class Entry:
    """One request: what the hash and the stream are on Redis."""

    job: Job
    owner: str
    created_at: float
    deadline_at: float
    expires_at: float
    state: State = "queued"
    attempt: int = 0
    worker: str = ""
    num_claims: int = 0
    deaths_in_a_row: int = 0
    num_deaths: int = 0
    tokens_at_claim: int = 0
    started_at: float = 0.0
    first_token_at: float = 0.0
    ended_at: float = 0.0
    cancel: CancelReason | None = None
    is_unread: bool = False  # no client can have a token of it
    retention_s: float = 60.0
    readers: list[str] = field(default_factory=list)
    restored: tuple[int, int] = (-1, -1)  # from which attempt to which
    num_tokens: int = 0
    is_deleted: bool = False
    log: list[Event] = field(default_factory=list)

    def copy(self) -> Entry:
        return replace(self, log=list(self.log), readers=list(self.readers))


@dataclass(slots=True, eq=False)
class BoundKey:
    """An idempotency key's entry."""

    job_id: str
    body_hash: str
    bound_at: float
    expires_at: float


@dataclass(slots=True, eq=False)
class WorkerLease:
    """`info` is None once the worker has left: others still reap, for a while, what a late wait may move to it."""

    info: WorkerInfo | None
    lapses_at: float


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """All that a store holds, by id, at one moment; by default an empty store's. `bound`: by caller and key's hash.

    `pulse_at`: when a process of the pool last renewed a lease. `amnesty_until`: no worker counts as dead before it.
    """

    jobs: dict[str, Entry] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)
    workers: dict[str, WorkerLease] = field(default_factory=dict)
    gateways: dict[str, float] = field(default_factory=dict)
    bound: dict[tuple[str, str], BoundKey] = field(default_factory=dict)
    pulse_at: float = 0.0
    amnesty_until: float = 0.0
