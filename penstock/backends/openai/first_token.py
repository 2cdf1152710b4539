"""How long a request waits for its first token at one replica. Knows nothing of HTTP.

An engine that is slow (it loads its model, reads a long prompt, has a queue of its own) works on the request. To ask it
again from the start would be more load just when it is slow, so a request leaves a replica only for another one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from penstock.limit import Limit


@dataclass(frozen=True, slots=True)
class Patience:
    """`has_other()`: another replica can take the request now that has not been asked. `deadline_at`: monotonic."""

    has_other: Callable[[], bool] = lambda: True
    deadline_at: float = math.inf


class FirstToken(Limit):
    """A limit of `first_token_s` that begins anew while no other replica can take the request, until its deadline.

    `has_begun`: the first token has come. From then on it is a `Limit` like any other.
    """

    __slots__ = ("_begun_at", "_patience", "_step_s", "has_begun")

    def __init__(self, first_token_s: float, patience: Patience) -> None:
        self._begun_at = time.monotonic()
        self._step_s = first_token_s
        self._patience = patience
        self.has_begun = False
        super().__init__(min(self._begun_at + first_token_s, patience.deadline_at))

    def __str__(self) -> str:
        """How long it has waited, and the option."""
        return f"{time.monotonic() - self._begun_at:.3g} s (first_token_s)"

    def _ring(self) -> None:
        now = time.monotonic()
        is_due = self._until <= now < self._patience.deadline_at
        if is_due and not self.has_begun and not self._patience.has_other():
            self._until = min(now + self._step_s, self._patience.deadline_at)
        super()._ring()
