"""The replicas of one model in use: their requests, their state, and the jobs that wait for one.

`retries` and `breaker` decide; here are the clock, the waiting, the metrics and the logs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.backends.openai.failures import UpstreamError
from penstock.backends.openai.replicas import PickedReplica, Replica, Tier
from penstock.backends.openai.retries import RetryPlan

logger = logging.getLogger("penstock.backends")

Observe = Callable[[str, Mapping[str, str], float], None]


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way. `has_begun`: a token has come. Given back once, by whatever ends the request."""

    tier: Tier
    replica: Replica
    is_trial: bool
    begun_at: float
    caller: str = ""
    has_begun: bool = False
    is_back: bool = False


class Upstreams:
    """Calls `observe(metric, labels, value)` for each event; labels come from the configuration alone. `model`: their
    model's name, for the log.
    """

    def __init__(self, tiers: Sequence[Tier], observe: Observe, model: Callable[[], str] = str) -> None:
        self.tiers = tiers
        self._model = model
        self._observe = observe
        self._num_begun = 0
        self._waiting: dict[asyncio.Future[None], None] = {}  # oldest first; one for each waiting job, so bounded

    def replicas(self) -> Iterator[tuple[Tier, Replica]]:
        return ((tier, replica) for tier in self.tiers for replica in tier.replicas)

    async def take(self, plan: RetryPlan, request_id: str) -> Ticket:
        """Wait for a replica. Raises the job's `PenstockError` when the plan gives up."""
        while True:
            now = time.monotonic()
            step = plan.next(now)
            if isinstance(step, PickedReplica):
                self._report_fallback(plan, step, now, request_id)
                return self._begin(step, now, plan.caller)
            await self.changed(None if step.until is None else step.until - now)

    def began(self, ticket: Ticket, plan: RetryPlan) -> None:
        """The request's first token has come."""
        for replica, is_trial in plan.convicted(ticket.replica):
            self._charge(replica, is_trial, "server_error")
        ticket.has_begun = True
        now = time.monotonic()
        ticket.replica.answered(ticket.caller, now)
        ticket.is_trial = False  # the trial is over; how the answer ends is not part of it
        labels = {"upstream": ticket.replica.name}
        self._observe("upstream_first_token_seconds", labels, now - ticket.begun_at)
        self._judge(ticket.replica, ticket.replica.breaker.succeeded, "ok")

    def failed(self, ticket: Ticket, failure: UpstreamError, *, is_charged: bool) -> None:
        replica = ticket.replica
        if failure.rest_s:
            replica.rests.refused(ticket.caller, time.monotonic(), failure.rest_s)
        if is_charged or (ticket.is_trial and failure.is_fault and not failure.answer):
            self._charge(replica, ticket.is_trial, failure.reason)
        elif failure.is_fault:
            replica.is_doubted = True
        self.leave(ticket, failure.reason)

    def leave(self, ticket: Ticket, outcome: str) -> None:
        """The request has ended, in any way. Safe to repeat; only the first outcome counts."""
        if ticket.is_back:
            return
        ticket.is_back = True
        replica = ticket.replica
        replica.num_open -= 1
        replica.breaker.abandoned(ticket.is_trial)
        self._observe("upstream_open_streams", {"upstream": replica.name}, replica.num_open)
        self._observe("upstream_requests_total", {"upstream": replica.name, "outcome": outcome}, 1.0)
        self.ring()

    def checked(self, replica: Replica, *, is_well: bool) -> None:
        """The result of a health check."""
        breaker = replica.breaker
        if is_well:
            self._judge(replica, breaker.check_passed, "check passed")
        else:
            self._judge(replica, lambda: breaker.check_failed(time.monotonic()), "check failed")
        self.ring()

    def report_all(self) -> None:
        for _, replica in self.replicas():
            self._report_state(replica)

    async def changed(self, timeout_s: float | None) -> None:
        """Wait until something has changed, at most `timeout_s`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return  # the wait was for the time alone
        finally:
            self._waiting.pop(future, None)

    def ring(self) -> None:
        """Something has changed: the waiting jobs look again, the oldest first."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _begin(self, picked: PickedReplica, now: float, caller: str) -> Ticket:
        replica = picked.replica
        self._num_begun += 1
        replica.turn = self._num_begun
        replica.num_open += 1
        self._observe("upstream_open_streams", {"upstream": replica.name}, replica.num_open)
        return Ticket(picked.tier, replica, replica.breaker.begin(), now, caller)

    def _charge(self, replica: Replica, is_trial: bool, reason: str) -> None:
        now = time.monotonic()
        self._judge(replica, lambda: replica.breaker.failed(now, is_trial), reason)

    def _judge(self, replica: Replica, verdict: Callable[[], None], reason: str) -> None:
        """Pass the verdict to the breaker; log and count a change of its state."""
        was_open = replica.breaker.is_open
        verdict()
        breaker = replica.breaker
        if breaker.is_open != was_open:
            self._report_state(replica)
            if breaker.is_open:
                logger.warning("an upstream is ejected", extra=self._named(replica) | {"reason": reason})
            else:
                logger.info("an upstream is back", extra=self._named(replica))
                self.ring()

    def _report_state(self, replica: Replica) -> None:
        self._observe("upstream_up", {"upstream": replica.name}, 0.0 if replica.breaker.is_open else 1.0)

    def _report_fallback(self, plan: RetryPlan, picked: PickedReplica, now: float, request_id: str) -> None:
        for tier, reason in plan.passed_over(picked, now):
            labels = {"tier": str(tier.number), "reason": reason}
            self._observe("upstream_fallbacks_total", labels, 1.0)
            logger.info(
                "a tier is passed over",
                extra={"request_id": request_id, **self._named(picked.replica), **labels},
            )

    def _named(self, replica: Replica) -> dict[str, str]:
        return {"model": self._model(), "upstream": replica.name}
