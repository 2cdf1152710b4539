"""Requests whose workers have died: one batch of them at a time, so that a third death is a request's own (rule 9).

A death counts against everything that a worker holds. Suspects that would only wait behind another one are therefore
not held but handed back, and a worker takes no more until the one that it tries has shown a token. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.job import Claim
from penstock.worker.running_job import Lane


class Suspects:
    """The suspects that one tenure holds."""

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._lanes: list[Lane] = []

    def add(self, lane: Lane) -> None:
        if lane.claim.num_deaths:
            self._lanes.append(lane)

    @property
    def is_trying(self) -> bool:
        """Whether one is here that has not shown a token since it was claimed: it may still end the whole worker."""
        self._lanes = [lane for lane in self._lanes if lane.is_open and lane.num_sent == lane.num_given]
        return bool(self._lanes)

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
