"""Requests whose workers have died: a worker tries one batch of them at a time, so that a third death counts only
against a request that caused it (rule 9).

A death counts against everything that a worker holds. Suspects that would only wait behind another one are therefore
not held but handed back, and a worker takes no more until the one that it tries has shown a token. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.job import Claim
from penstock.worker.running_job import RunningJob


class Suspects:
    """The suspects that one tenure holds."""

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._jobs: list[RunningJob] = []

    def add(self, job: RunningJob) -> None:
        if job.claim.num_deaths:
            self._jobs.append(job)

    @property
    def is_trying(self) -> bool:
        """Whether one of them has yielded no token since it was claimed: it may still end the whole worker."""
        self._jobs = [job for job in self._jobs if job.is_open and job.num_sent == job.num_given]
        return bool(self._jobs)

    def part(self, claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
        """Split fresh claims into (keep, hand back): of suspects only the first batch is kept, or none."""
        first = next((claim for claim in claims if claim.num_deaths), None)
        if first is None:
            return list(claims), []
        together = [] if self.is_trying else [first]
        if together and first.num_deaths == 1:
            alike = (c for c in claims if c.num_deaths == 1 and c.job.batch_key == first.job.batch_key)
            together = list(alike)[: self._max_batch_size]
        keep = [claim for claim in claims if not claim.num_deaths or claim in together]
        return keep, [claim for claim in claims if claim not in keep]
