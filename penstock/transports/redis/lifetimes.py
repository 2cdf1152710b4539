"""How long things last in Redis, as its commands take it: whole milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.job import Job
from penstock.transports.base import LEASE_S


@dataclass(slots=True, frozen=True)
class Lifetimes:
    """The lifetimes from one process' settings. A lease other than that in the scripts is for tests."""

    lease_ms: int
    retention_ms: int
    resume_window_ms: int

    @property
    def lease(self) -> tuple[int, ...]:
        """The scripts' last argument: nothing for the lease that they have themselves."""
        return () if self.lease_ms == round(LEASE_S * 1000) else (self.lease_ms,)

    def retention_of(self, job: Job) -> int:
        """How long a job is kept after its end, ms."""
        return self.retention_ms if job.retention_s is None else ms(job.retention_s)


def ms(seconds: float) -> int:
    """1 at least: Redis refuses an expiry of 0."""
    return max(1, round(seconds * 1000))
