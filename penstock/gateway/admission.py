"""Which requests are admitted, and when to retry others: keys, rate limits, models, the measured drain rate.

`admit` answers with a `Permit`, which lives as long as the request, or raises an error that contains when to retry.
The depth limit itself is not judged here: it is exact, in the store, in the same script as the push. Knows nothing of
HTTP beyond header values.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Sequence

from penstock.callers.caller import Caller as Caller  # it is what `admit` and `charge` are given
from penstock.callers.caller import Callers
from penstock.callers.keys import KeyRing
from penstock.errors import (
    DeadlineUnreachable,
    Draining,
    InvalidRequest,
    ModelNotAllowed,
    ModelNotFound,
    NoWorkers,
    QueueFull,
    RateLimited,
    StoreUnavailable,
)
from penstock.fleet import Capabilities
from penstock.gateway.pool import PoolView
from penstock.settings.about import env_name
from penstock.settings.declaration import Network
from penstock.transports.base import GatewayStore, RateLimit, Verdict
from penstock.transports.gcra import gcra

STORE_WAIT_S = 2.0
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0
_MAX_LOCAL_KEYS = 10_000
INPUTS_PER_UNIT = 16  # so many texts to embed are about the work of one request
MAX_NAMED = 20


class Permit:
    """Admission to one request; lives as long as it does, and is given back once on success, error and hang-up."""

    __slots__ = ("_admission", "caller")

    def __init__(self, admission: Admission, caller: Caller) -> None:
        self._admission: Admission | None = admission
        self.caller = caller
        admission.num_inside += 1

    def release(self) -> None:
        """Give it back. Safe to repeat."""
        if self._admission is not None:
            self._admission.num_inside -= 1
            self._admission = None


class Admission:
    """The gate of one gateway process."""

    def __init__(
        self,
        store: GatewayStore,
        pool: PoolView,
        *,
        keys: KeyRing | None = None,
        rate_limit: RateLimit | None = None,
        trusted_proxies: Sequence[Network] = (),
        no_worker_grace_s: float = 10.0,
        max_waiting: int = 1000,
    ) -> None:
        self._store = store
        self._rate_limit = rate_limit
        self.identify = Callers(keys, trusted_proxies).identify
        self._grace_s = no_worker_grace_s
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._local_tats: OrderedDict[str, float] = OrderedDict()
        self.pool = pool
        self.num_inside = 0
        self.is_draining = False

    # ── how often ────────────────────────────────────────────────────────────────────────────────────────────────

    def limit_of(self, caller: Caller) -> RateLimit | None:
        """The key's own limit, else the one of the settings; None when there is none."""
        key = caller.key
        if key is not None and key.rpm is not None:
            return RateLimit(key.rpm, key.burst or max(1, key.rpm // 6)) if key.rpm else None
        return self._rate_limit

    async def charge(self, caller: Caller, cost: int = 1, charged: int = 0) -> dict[str, str]:
        """Count this request; returns the x-ratelimit headers. Raises `RateLimited`, with the same headers unless a
        part of it was counted before.

        `cost`: as how many requests it counts, `charged` of which have been counted before, and are for the caller of
        this to `refund` if it is refused. `InvalidRequest` for one that no caller of this limit could ever make.
        """
        limit = self.limit_of(caller)
        if limit is None or cost <= charged:
            return {}
        if cost > max(limit.burst, 1):
            raise InvalidRequest(
                f"This request counts as {cost}: each answer and prompt counts as one, and so do {INPUTS_PER_UNIT} "
                f"inputs to embed. At most {limit.burst} may come at once. Ask for fewer, or raise the burst of the "
                "key (penstock keys create --burst) or PENSTOCK_RATE_LIMIT_BURST."
            )
        verdict = await self._charge(caller, limit, cost - charged)
        headers = _headers(limit, verdict)
        if not verdict.is_allowed:
            error = RateLimited(
                f"Over the limit of {limit.rpm} requests a minute (burst {limit.burst}; {_setting_of(caller)})."
                + (f" This request counts as {cost}." if cost > 1 else ""),
                retry_after_s=verdict.retry_after_s,
            )
            if not charged:
                error.headers = headers
            raise error
        return headers

    async def refund(self, caller: Caller, cost: int) -> dict[str, str]:
        """Give back what was counted for a request that there was no room for; returns the x-ratelimit headers."""
        limit = self.limit_of(caller)
        return {} if limit is None or not cost else _headers(limit, await self._charge(caller, limit, -cost))

    async def _charge(self, caller: Caller, limit: RateLimit, cost: int) -> Verdict:
        try:
            return await self._store.charge(caller.rate_key, limit, cost)
        except StoreUnavailable:
            return self._charge_locally(caller.rate_key, limit, cost)

    def _charge_locally(self, key: str, limit: RateLimit, cost: int) -> Verdict:
        """While the store is unavailable each gateway counts for itself: the limit still holds, per gateway."""
        verdict, tat = gcra(self._local_tats.pop(key, 0.0), time.monotonic(), limit, cost)
        self._local_tats[key] = tat
        while len(self._local_tats) > _MAX_LOCAL_KEYS:
            self._local_tats.popitem(last=False)
        return verdict

    # ── for what ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, caller: Caller, *, needs_worker: bool = True) -> Permit:
        """Let a request in; waits up to `no_worker_grace_s` for a first worker (a cold start), then 503."""
        if self.is_draining:
            raise Draining("This gateway is shutting down.", retry_after_s=1.0)
        if needs_worker and not self.pool.has_workers:
            await self._first_worker()
        return Permit(self, caller)

    async def _first_worker(self) -> None:
        if self._num_waiting >= self._max_waiting:
            message = f"{self._max_waiting} requests wait for a first worker ({env_name('max_queue_depth')})."
            raise QueueFull(message, retry_after_s=self._grace_s)
        self._num_waiting += 1
        try:
            if not self.pool.has_looked:
                if await self.pool.first_worker(min(STORE_WAIT_S, self._grace_s)):
                    return
                if not self.pool.has_looked:
                    raise StoreUnavailable("The store cannot be reached.", retry_after_s=1.0)
            if not await self.pool.first_worker(self._grace_s):
                message = f"No worker is alive (waited {self._grace_s:g} s, {env_name('no_worker_grace_s')})."
                raise NoWorkers(message, retry_after_s=self._grace_s)
        finally:
            self._num_waiting -= 1

    def choose_model(self, name: str | None, caller: Caller) -> tuple[str, Capabilities]:
        """The model asked for, or the first that this caller may use."""
        models = self.pool.models
        key = caller.key
        if name is None:
            name = next((model for model in models if key is None or key.may_use(model)), None)
            if name is None:
                raise ModelNotAllowed("This key may use none of the models served.", param="model")
        if key is not None and not key.may_use(name):
            raise ModelNotAllowed(f"This key may not use the model {name!r}.", param="model")
        if name not in models:
            served = sorted(model for model in models if key is None or key.may_use(model))
            more = f" and {len(served) - MAX_NAMED} more" if len(served) > MAX_NAMED else ""
            shown = ", ".join(served[:MAX_NAMED]) + more or "none"
            raise ModelNotFound(f"Unknown model {name!r}; served: {shown}.", param="model")
        return name, models[name]

    def judge_deadline(self, timeout_s: float) -> None:
        """Raise `DeadlineUnreachable` if the queue takes longer than `timeout_s`; never before a rate is known."""
        wait_s = self.pool.wait_s(self.pool.depth)
        if wait_s is not None and wait_s > timeout_s:
            raise DeadlineUnreachable(
                f"The queue is {wait_s:.0f} s long at present, and timeout_s is {timeout_s:g}.",
                param="timeout_s",
                retry_after_s=min(wait_s - timeout_s, _MAX_RETRY_S),
            )

    def retry_after_s(self) -> float:
        """When to come back after `queue_full`: the time to drain a tenth of the queue, with jitter."""
        wait = self.pool.wait_s(max(1, self.pool.depth // 10))
        wait = _MIN_RETRY_S if wait is None else min(max(wait, _MIN_RETRY_S), _MAX_RETRY_S)
        return wait * random.uniform(1.0, 1.3)


def _headers(limit: RateLimit, verdict: Verdict) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(limit.rpm),
        "x-ratelimit-remaining-requests": str(verdict.remaining),
        "x-ratelimit-reset-requests": f"{verdict.reset_s:.3f}s",
    }


def _setting_of(caller: Caller) -> str:
    """Where the limit that this caller has comes from."""
    if caller.key is not None and caller.key.rpm is not None:
        return "this key's own, penstock keys create --rpm"
    return f"{env_name('rate_limit_rpm')}, {env_name('rate_limit_burst')}"
