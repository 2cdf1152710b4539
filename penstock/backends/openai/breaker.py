"""A circuit breaker for one replica. Pure: time is an argument, monotonic seconds.

    closed ──max_failures in a row──▶ open ──until──▶ half open ──a trial succeeds──▶ closed
                                        ▲                 │
                                        └──a trial fails──┘   each time twice as long, at most `last_s`

Half open lets one request through at a time, the trial. Where the replica has a health check, that must have passed
first (`check_passed`): so no request has to find out that an engine still hangs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(slots=True)
class Breaker:
    max_failures: int = 3
    first_s: float = 1.0
    last_s: float = 30.0
    has_check: bool = False
    num_failures: int = 0  # in a row
    num_openings: int = 0  # in a row
    until: float = 0.0
    is_open: bool = False
    is_checked: bool = True
    is_trying: bool = False

    def state(self, now: float) -> BreakerState:
        if not self.is_open:
            return "closed"
        return "half_open" if now >= self.until and self.is_checked else "open"

    def may_begin(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return not self.is_open or (self.state(now) == "half_open" and not self.is_trying)

    def begin(self) -> bool:
        """Call it when a request is sent. Whether it is the trial: pass that to the call that reports its outcome."""
        if self.is_open:
            self.is_trying = True
        return self.is_open

    def succeeded(self) -> None:
        """An answer began, to any request: one from before the opening counts as much as a trial."""
        self.num_failures = self.num_openings = 0
        self.is_open = self.is_trying = False

    def failed(self, now: float, is_trial: bool) -> None:
        """A failure by the replica's fault. Late failures of requests from before the opening do not prolong it."""
        if self.is_open:
            if is_trial:
                self._open(now)
            return
        self.num_failures += 1
        if self.num_failures >= self.max_failures:
            self._open(now)

    def abandoned(self, is_trial: bool) -> None:
        """A request ended without a verdict on the replica, e.g. cancelled."""
        if is_trial:
            self.is_trying = False

    def wants_check(self, now: float) -> bool:
        return self.is_open and not self.is_checked and now >= self.until

    def check_passed(self) -> None:
        self.is_checked = True

    def check_failed(self, now: float) -> None:
        """Also opens a closed breaker: at start-up nothing else is known of a replica."""
        self._open(now)

    def _open(self, now: float) -> None:
        self.is_open, self.is_trying, self.is_checked = True, False, not self.has_check
        self.until = now + min(self.last_s, self.first_s * 2.0 ** min(self.num_openings, 16))
        self.num_openings += 1
        self.num_failures = 0
