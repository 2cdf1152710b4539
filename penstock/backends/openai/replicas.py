"""Replicas in tiers, and which of them a request goes to: the least loaded usable one of the first tier that has one.

Pure: time is an argument, monotonic seconds. Knows nothing of HTTP, of jobs, or of why something failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from penstock.backends.openai.breaker import Breaker
from penstock.backends.openai.engines import Engine
from penstock.backends.openai.rests import Rests

# Why a replica is not usable now.
Hindrance = Literal["ejected", "resting", "full"]


@dataclass(slots=True, eq=False)
class Replica:
    """One server. `name` is in logs and labels: host and port as configured, never a key or a query.

    `rests`: the callers that it has sent `Retry-After`. `turn` is the number of its last request. `known_at`: when it
    last began an answer or was checked; `num_misses`: checks in a row since then that failed. `is_doubted`: it has
    failed a request by a fault that may be the request's.
    """

    name: str
    url: str
    breaker: Breaker = field(default_factory=Breaker)
    slots: int | None = None
    num_open: int = 0
    rests: Rests = field(default_factory=Rests)
    turn: int = 0
    known_at: float = 0.0
    num_misses: int = 0
    is_doubted: bool = False

    def answered(self, caller: str, now: float) -> None:
        """An answer has begun."""
        self.rests.answered(caller)
        self.known_at, self.num_misses, self.is_doubted = now, 0, False

    def hindrance(self, now: float, caller: str = "") -> Hindrance | None:
        if not self.breaker.may_begin(now):
            return "ejected"
        if now < self.rests.until(caller):
            return "resting"
        return "full" if self.slots is not None and self.num_open >= self.slots else None

    def usable_at(self, now: float, caller: str = "") -> float | None:
        """When time alone makes it usable: `now` or later; None if something else must happen first."""
        at = max(now, self.rests.until(caller))
        breaker = self.breaker
        if breaker.is_open:
            if breaker.is_trying or not breaker.is_checked:
                return None
            at = max(at, breaker.until)
        return None if self.slots is not None and self.num_open >= self.slots else at


@dataclass(slots=True, eq=False)
class Tier:
    """Replicas that are as good as one another. `number` counts from 1. `key` is a secret: in no repr."""

    number: int
    replicas: Sequence[Replica]
    engine: Engine
    model: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class PickedReplica:
    tier: Tier
    replica: Replica


def choose(
    tiers: Iterable[Tier], now: float, without: Collection[Replica] = (), caller: str = ""
) -> PickedReplica | None:
    """The least loaded usable replica, of the first tier that has any; of several the one longest unused."""
    for tier in tiers:
        usable = [one for one in tier.replicas if one not in without and one.hindrance(now, caller) is None]
        if usable:
            return PickedReplica(tier, min(usable, key=lambda one: (one.num_open, one.turn)))
    return None
