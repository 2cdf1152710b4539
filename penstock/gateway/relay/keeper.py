"""Remembers the requests that have ended at this gateway, and gives them back to a store that has lost them.

The same for idempotency keys: a key is bound again with the request that it names. Knows which data may be missing
from the store just now, because it has come back or does not know this gateway any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from penstock.errors import StoreUnavailable
from penstock.event import Done, Terminal
from penstock.gateway.relay.ended import Ended
from penstock.gateway.relay.records import is_dead, outcome_of
from penstock.gateway.relay.stream import RelayStream
from penstock.job import Job
from penstock.transports.base import LEASE_S, TICK_S, Bound, GatewayStore
from penstock.transports.quota import AHEAD_TOKENS, answer_bytes, booked_answer_bytes, booked_tokens

logger = logging.getLogger(__name__)

UNSURE_S = LEASE_S  # a gateway that lives has looked at the store by then, and given back what it holds
SETTLED_S = LEASE_S + TICK_S  # so does one that was frozen and is not taken for dead: then its keys are bound again
LOST_ONCE_S = 0.1
LISTEN_AGAIN_S = 0.25
KEY_SLACK_S = 30.0
EXPIRE_S = 5.0
_TRIES, _AGAIN_S, _AT_ONCE = 40, 0.25, 256


class Keeper:
    """The memory of one gateway. `retention_s`: how long a request is kept that does not say so itself.

    `on_loss()`: the store has lost data, not the last moment only.
    """

    def __init__(self, gateway_id: str, store: GatewayStore, retention_s: float, on_loss: Callable[[], None]) -> None:
        self.ended = Ended()
        self._gateway_id = gateway_id
        self._store = store
        self._retention_s = retention_s
        self._on_loss = on_loss
        self._expired_at = 0.0
        self._lost_at = self._doubted_at = float("-inf")
        self._is_checking = self._must_check = False

    # ── what has ended ───────────────────────────────────────────────────────────────────────────────────────────

    def retention_of(self, job: Job, end: Terminal | None = None) -> float:
        """How long it is kept after its end. What a client or an operator has cancelled is not kept long."""
        is_cancelled = isinstance(end, Done) and end.finish_reason == "cancelled"
        own_s = self._retention_s if job.retention_s is None else job.retention_s
        return min(own_s, self._retention_s) if is_cancelled else own_s

    def keep(self, stream: RelayStream) -> None:
        """Remember how a request ended, for as long as the store keeps it."""
        self.ended.keep(stream, stream.ended_at + self.retention_of(stream.job, stream.end))

    def grow(self, streams: Iterable[RelayStream], now: float) -> None:
        """Book more for answers that grow, before their tokens are as many as were booked."""
        for stream in streams:
            num_tokens = len(stream.tokens)
            if 2 * num_tokens <= stream.num_booked or stream.end is not None:
                continue
            num = booked_tokens(stream.job, num_tokens)
            if num > stream.num_booked:
                stream.num_booked = num
                self._store.grow(stream.job, booked_answer_bytes(stream.job, num_tokens), self._life_s(stream, now))

    def weigh(self, stream: RelayStream, keep_s: float | None) -> None:
        """Book the final size of a request for its caller. A dead one keeps its size, so that it can run again."""
        if is_dead(stream):
            return
        num_bytes = answer_bytes(stream.job, stream.tokens)
        if len(stream.tokens) > AHEAD_TOKENS:  # a quick one may have more than it was booked for
            self._store.grow(stream.job, num_bytes, self._life_s(stream, time.monotonic()))
        self._store.weigh(stream.job, num_bytes, keep_s)

    def _life_s(self, stream: RelayStream, now: float) -> float:
        return max(0.0, stream.deadline_at - now) + self.retention_of(stream.job)

    def get(self, job_id: str) -> RelayStream | None:
        """How a request ended here, if that is remembered."""
        return self.ended.get(job_id, time.monotonic())

    def forget(self, job_id: str) -> None:
        """It is deleted."""
        self.ended.forget(job_id)

    async def is_deleted(self, job_id: str) -> bool:
        """Whether a request that the store does not have was deleted, maybe through another gateway, and is not lost.

        If so, this gateway drops it too.
        """
        states = await self._store.states([job_id])
        if states.get(job_id) != "done" or await self._store.read(job_id) is not None:  # lost, or given back meanwhile
            return False
        self.forget(job_id)
        return True

    def expire(self, now: float) -> bool:
        """Drop what the store has expired as well; False if it is not yet time to look."""
        if now - self._expired_at < EXPIRE_S:
            return False
        self._expired_at = now
        self.ended.expire(now)
        return True

    async def check(self) -> None:
        """Ask the store for everything that is remembered, and give back what it has lost, the newest first."""
        self._must_check = True
        if self._is_checking:
            return
        self._is_checking = True
        try:
            while self._must_check:
                self._must_check = False
                ids = self.ended.ids(time.monotonic())
                for first in range(0, len(ids), _AT_ONCE):
                    await self._check(ids[first : first + _AT_ONCE])
        finally:
            self._is_checking = False

    async def _check(self, ids: list[str]) -> None:
        for _ in range(_TRIES):
            try:
                states = await self._store.states(ids)
                for job_id in ids:
                    await self._give_back(job_id, states.get(job_id))
                return
            except StoreUnavailable:
                await asyncio.sleep(_AGAIN_S)

    async def check_one(self, job_id: str) -> None:
        """Called when a frame shows that a worker runs it, or when a client asks for it."""
        try:
            states = await self._store.states([job_id])
            await self._give_back(job_id, states.get(job_id))
        except StoreUnavailable:
            return  # the next frame asks again, and so does the next subscription

    async def _give_back(self, job_id: str, state: str | None) -> None:
        now = time.monotonic()
        stream, keep_s = self.ended.get(job_id, now), self.ended.keep_s(job_id, now)
        # No client will ask for a request that was delivered and that the store has lost.
        if (
            state == "done"
            or stream is None
            or stream.end is None
            or (state is None and (keep_s < 1.0 or self.ended.is_delivered(job_id)))
        ):
            return
        if stream.job.once:
            await self.bind(stream.job, keep_s)
        if await self._store.restore_end(outcome_of(stream, stream.end, keep_s, now), self._gateway_id):
            logger.warning("given back: the store had lost its end", extra={"request_id": job_id})

    # ── idempotency keys ─────────────────────────────────────────────────────────────────────────────────────────

    async def bind(self, job: Job, keep_s: float, instead_of: str = "") -> Bound | None:
        """The key of a job names it, for a little longer than it is kept; else what the key names."""
        return await self._store.bind_key(job, keep_s + KEY_SLACK_S, instead_of)

    async def keep_bound(self, job: Job) -> None:
        """The job has ended: from here on its key lives as long as the answer."""
        try:
            await self.bind(job, self.retention_of(job))
        except StoreUnavailable:
            return  # it has the time from its submission; a store that has lost it is given both back

    # ── what the store may have lost ─────────────────────────────────────────────────────────────────────────────

    async def doubt(self) -> None:
        """The store may have come back without its last moments, or empty."""
        self._doubted_at = time.monotonic()
        try:
            await self._look_for_loss()
        except StoreUnavailable:
            return  # the next tick reports it

    def lose(self) -> None:
        """The store has lost data, as a tick or a look has shown."""
        now = time.monotonic()
        was_known = now - self._lost_at < LOST_ONCE_S
        self._lost_at = now
        if not was_known:
            self._on_loss()

    async def make_sure(self) -> None:
        """The store does not have what it was asked for. Raises `StoreUnavailable` if it may yet be given back."""
        await self._look_for_loss()
        if not self._store.is_listening or time.monotonic() - max(self._lost_at, self._doubted_at) < UNSURE_S:
            message = "Redis has just come back or lost data; the request may be there again in a moment."
            raise StoreUnavailable(message, retry_after_s=1.0)

    async def settle(self, until: float) -> None:
        """Return when other gateways have had the time to give back what the store has lost, or may have lost.

        It may have lost its last moments while the subscription is down, and for `SETTLED_S` after.
        Raises `StoreUnavailable` if that takes longer than `until`, on the monotonic clock: as long as the store does
        not know this gateway, which cannot tick or no longer does, it is unknown what the store has lost.
        """
        await self._look_for_loss()
        while (left_s := self._settled_at() - (now := time.monotonic())) > 0:
            if now >= until:
                message = "Redis has lost data, or this gateway is not known to it again; a key may yet be bound."
                raise StoreUnavailable(message, retry_after_s=1.0)
            await asyncio.sleep(min(left_s, until - now))
            await self._look_for_loss()

    def _settled_at(self) -> float:
        if not self._store.is_listening:
            return time.monotonic() + LISTEN_AGAIN_S
        return max(self._lost_at, self._doubted_at) + SETTLED_S

    async def _look_for_loss(self) -> None:
        """A store that does not know this gateway, which has ticked, has lost its data."""
        if not await self._store.knows(self._gateway_id):
            self.lose()
