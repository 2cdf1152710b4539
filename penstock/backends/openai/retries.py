"""One job on its way to an upstream: which replica next, how long to wait for it, when to give up. Pure.

Time is an argument, monotonic seconds. A replica that failed this job is left alone for its `Retry-After`, else for a
pause that doubles; others, of lower tiers too, are tried at once, and before it is tried again. Knows nothing of HTTP
and of other jobs.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.backends.openai.failures import UpstreamError
from penstock.backends.openai.replicas import PickedReplica, Replica, Tier, choose
from penstock.errors import BackendError, Overloaded, PenstockError


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """`retry_s`: nothing is tried again, or waited for, later than this after the beginning or the last token.
    `tries`: how many may fail in one tier that cost it work.
    """

    retry_s: float = 30.0
    tries: int = 3
    first_pause_s: float = 0.25
    last_pause_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until `until`, or until something changes at a replica; None: for a change alone."""

    until: float | None


class RetryPlan:
    def __init__(
        self,
        tiers: Sequence[Tier],
        limits: RetryLimits,
        now: float,
        deadline_at: float = math.inf,
        draw: Callable[[], float] = random.random,
        caller: str = "",
    ) -> None:
        """`caller`: the caller of the job; see `rests`."""
        self._tiers = tiers
        self._limits = limits
        self._deadline_at = deadline_at
        self._give_up_at = min(now + limits.retry_s, deadline_at)
        self._draw = draw
        self.caller = caller
        self._paused: dict[Replica, float] = {}
        self._num_failed: dict[Replica, int] = {}
        self._failed_now: set[Replica] = set()  # since every replica had its turn
        self._hopeless: set[Replica] = set()
        self._reasons: dict[int, str] = {}
        self._num_costly: Counter[int] = Counter()  # by tier
        self._last: UpstreamError | None = None
        self._suspects: dict[Replica, bool] = {}  # see `failed`

    def next(self, now: float) -> PickedReplica | Wait:
        """The next replica, or the time to wait. Raises the job's `PenstockError` when nothing is left to try."""
        if self._last is not None and self._last.again == "never":
            raise self._last.error
        is_late = self._last is not None and now > self._give_up_at
        if is_late and now > self._deadline_at:
            raise self._error(math.inf)
        tiers = [tier for tier in self._tiers if self._num_costly[tier.number] < self._limits.tries]
        # An upstream that hangs may take longer than `retry_s`: a replica that was not tried yet still is.
        tried = set(self._num_failed) if is_late else self._failed_now
        picked = choose(tiers, now, self._hopeless | tried, self.caller)
        if picked is None:
            if is_late:
                raise self._error(math.inf)
            paused = {replica for replica, until in self._paused.items() if until > now}
            picked = choose(tiers, now, self._hopeless | paused, self.caller)
            if picked is None:
                return self._wait(tiers, now)
            self._failed_now.clear()
        return picked

    def has_other(self, replica: Replica, tier: Tier, now: float) -> bool:
        """Whether this job could leave `replica`, where it is, for one that it has not tried and that is usable now."""
        left = [each for each in self._tiers if self._num_costly[each.number] + (each is tier) < self._limits.tries]
        return choose(left, now, {replica, *self._num_failed, *self._hopeless}, self.caller) is not None

    def failed(
        self,
        replica: Replica,
        tier: Tier,
        failure: UpstreamError,
        now: float,
        num_tokens: int = 0,
        *,
        is_trial: bool = False,
    ) -> bool:
        """Record a try that failed after `num_tokens`. Returns whether it counts against the replica: at most once for
        each job, so that one request that breaks engines does not eject them.

        A 5xx that the engine answered may be the request's doing (an image for a model of text) or the replica's. It
        counts only once the request has succeeded at another replica: see `convicted`. `is_trial`: of the breaker.
        """
        if num_tokens:  # there was progress: `retry_s` begins anew
            self._num_costly.clear()
            self._give_up_at = min(now + self._limits.retry_s, self._deadline_at)
        num = self._num_failed.get(replica, 0)
        if failure.rest_s is not None:
            pause_s = max(failure.rest_s, self._limits.first_pause_s)  # its `Retry-After`, but never a busy loop
        else:
            pause_s = min(self._limits.last_pause_s, self._limits.first_pause_s * 2.0 ** min(num, 16))
        self._num_failed[replica] = num + 1
        self._paused[replica] = now + pause_s * (1.0 + 0.25 * self._draw())
        self._failed_now.add(replica)
        self._num_costly[tier.number] += failure.costs_try and not num_tokens
        self._last = failure
        self._reasons[tier.number] = failure.reason
        if failure.again == "elsewhere":
            self._hopeless.add(replica)
        if failure.answer and not num_tokens:
            self._suspects[replica] = is_trial or self._suspects.get(replica, False)
            return False
        return failure.is_fault and num == 0

    def convicted(self, replica: Replica) -> list[tuple[Replica, bool]]:
        """Call it when an answer has begun at `replica`. Returns the replicas that answered the same request with an
        error, each with whether that try was a trial: the request is fine, so the fault is theirs.
        """
        suspects, self._suspects = self._suspects, {}
        return [(one, is_trial) for one, is_trial in suspects.items() if one is not replica]

    def passed_over(self, picked: PickedReplica, now: float) -> list[tuple[Tier, str]]:
        """The tiers above the chosen one, each with the reason why it was not chosen."""
        above = [tier for tier in self._tiers if tier.number < picked.tier.number]
        return [(tier, self._reasons.get(tier.number) or _hindrance(tier, now, self.caller)) for tier in above]

    def _wait(self, tiers: Sequence[Tier], now: float) -> Wait:
        left = [one for tier in tiers for one in tier.replicas if one not in self._hopeless]
        times = [(one, one.usable_at(now, self.caller)) for one in left]
        soonest = min((max(at, self._paused.get(one, now)) for one, at in times if at is not None), default=math.inf)
        if soonest <= self._give_up_at:
            return Wait(soonest)
        if any(one.hindrance(now, self.caller) == "full" for one in left):
            return Wait(None)  # it works, but is full: the job's deadline ends this wait, not `retry_s`
        if now < self._give_up_at and any(at is None for _, at in times):
            return Wait(self._give_up_at)  # another job's trial, or a check, may still succeed
        is_resting = bool(left) and all(one.hindrance(now, self.caller) == "resting" for one in left)
        raise self._error(soonest - now, is_resting)

    def _error(self, retry_after_s: float, is_resting: bool = False) -> PenstockError:
        soon = retry_after_s if math.isfinite(retry_after_s) else None
        if self._last is None:
            if is_resting:
                return Overloaded("The model's upstreams are at capacity.", retry_after_s=soon)
            return BackendError("No upstream of this model is available right now.", retry_after_s=soon)
        error = self._last.error
        if error.retry_after_s is None:
            error.retry_after_s = soon
        return error


def _hindrance(tier: Tier, now: float, caller: str) -> str:
    """Why a tier was passed over without a try: the mildest reason of its replicas."""
    found = {one.hindrance(now, caller) for one in tier.replicas}
    return next((name for name in ("full", "resting", "ejected") if name in found), "paused")
