"""The JSON answers of the operators' routes as types: the routes write them, the command line reads them.

Knows no server and no terminal. Durations are in seconds.
"""

from __future__ import annotations

from msgspec import Struct

from penstock.fleet import Engines
from penstock.transports.base import DeadJob, Finding, Level, State

PATH = "/v1/admin"  # of these routes


class GatewayRow(Struct, frozen=True, kw_only=True):
    """`lease_s`: what is left of its lease; negative where it has expired."""

    id: str
    lease_s: float


class WorkerRow(Struct, frozen=True, kw_only=True):
    """`held`: how many requests it has claimed. What only the worker itself announces is None where it did not.

    `engines`: of its models that run at engines in other processes, how many of these may get a request now.
    """

    id: str
    lease_s: float
    held: int
    slots: int | None = None
    free: int | None = None
    host: str | None = None
    pid: int | None = None
    models: list[str] = []
    engines: dict[str, Engines] = {}


class RunningRow(Struct, frozen=True, kw_only=True):
    """A request that a worker holds. `attempts`: how often it was claimed; `age_s`: since its submission."""

    id: str
    model: str
    caller: str = ""
    state: State
    worker: str
    attempts: int
    tokens: int
    age_s: float


class PoolOverview(Struct, frozen=True, kw_only=True):
    """Gateways, workers and the queue of one pool, and the first of the requests that its workers hold.

    `num_held` counts all of them. `oldest_waiting_s`: how long the next one in the queue has waited; None if none does.
    """

    queue_depth: int
    drain_rate_per_s: float
    num_taken: int
    num_held: int
    num_dead: int
    oldest_waiting_s: float | None
    gateways: list[GatewayRow]
    workers: list[WorkerRow]
    running: list[RunningRow]


class DoctorReport(Struct, frozen=True, kw_only=True):
    """The findings, the worst first; `level` is the worst one's."""

    level: Level
    findings: list[Finding]


class DeadEntry(DeadJob, frozen=True, kw_only=True):
    """An entry of the dead-letter list, without its prompt.

    `attempts` and `created_at` (seconds since 1970 on the store's clock) are None where the store no longer has the
    request; it cannot be run again then.
    """

    attempts: int | None
    created_at: float | None
    can_redrive: bool


class Redriven(Struct, frozen=True, kw_only=True):
    """`request_id`: of the request that runs now; `redriven`: of the one that has left the list."""

    request_id: str
    redriven: str


class Dropped(Struct, frozen=True, kw_only=True):
    """`dropped`: the id that has left the list."""

    dropped: str


class CancelOutcome(Struct, frozen=True, kw_only=True):
    """`outcome`: in words, for people."""

    request_id: str
    outcome: str


class CallerCancelled(Struct, frozen=True, kw_only=True):
    """`cancelled`: requests that waited, and have ended; `being_cancelled`: those that run, and will end.

    `is_live`: the key is not revoked, as this gateway sees it, so that more may come.
    """

    caller: str
    cancelled: int
    being_cancelled: int
    is_live: bool


class DeadList(Struct, frozen=True, kw_only=True):
    """The dead-letter list, newest first."""

    data: list[DeadJob]
