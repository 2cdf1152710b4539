"""One process' way to the simulated store: every verb takes time, and may be lost on the way there or back.

Commands of one connection stay in order; the lease has a connection of its own, and so has the blocking wait. What
is published arrives in order too, but may be lost, repeated, or late. What goes wrong is drawn by `Faults`.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from penstock.errors import PenstockError, QueueFull, StoreUnavailable
from penstock.event import Event
from penstock.job import CancelReason, Job
from penstock.transports.base import NO_SHARE
from penstock.transports.quota import Share
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.store import ModelStore

HOP_S = 0.0005
SUBMIT_WITHIN_S = 2.0
RESUBSCRIBE_S = 0.05
_LEASE_VERBS = ("renew", "reap")


@dataclass(slots=True)
class Faults:
    """How often what goes wrong, as probabilities. `delay_s`: the longest delay of a publish."""

    lost_publish: float = 0.0
    repeated_publish: float = 0.0
    delayed_publish: float = 0.0
    delay_s: float = 0.0
    lost_request: float = 0.0
    lost_reply: float = 0.0
    partial: float = 0.0
    slow_failure: float = 0.2


class Site(Protocol):
    """What a wire needs of the run that it is part of. In `context` no process runs: the store's."""

    context: contextvars.Context
    loop: VirtualLoop
    rng: random.Random
    store: ModelStore
    faults: Faults
    is_away: bool
    epoch: int

    def note(self, who: str, what: str, *details: object) -> None: ...

    def passes(self, process: Process, point: str) -> None: ...

    def stalled(self, process: Process) -> None: ...


@dataclass(slots=True)
class _Connection:
    """Nothing on it overtakes anything."""

    at: float = 0.0

    def after(self, when: float) -> float:
        self.at = max(when, self.at + 1e-7)
        return self.at


@dataclass(eq=False)
class Wire:
    """Stands for a `Transport`: verbs that are not spelled out here go to the store as they are."""

    site: Site
    process: Process
    gateway_id: str = ""
    on_event: Callable[[Event], None] | None = None
    on_reset: Callable[[], None] | None = None
    followed: set[str] = field(default_factory=set)
    hint: Callable[[str, CancelReason], None] | None = None
    is_subscribed: bool = True
    command: _Connection = field(default_factory=_Connection)
    lease: _Connection = field(default_factory=_Connection)
    back: _Connection = field(default_factory=_Connection)
    channel: _Connection = field(default_factory=_Connection)
    waits: set[asyncio.Task[Any]] = field(default_factory=set)

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        if verb.startswith("_"):
            raise AttributeError(verb)
        return partial(self.ask, verb)

    async def open(self) -> None:
        if self.site.is_away:
            raise StoreUnavailable("away")

    async def close(self) -> None:
        """Nothing is open."""

    def retire(self, job_id: str, retention_s: float) -> None:
        """Nothing of it is forgotten while the run lasts."""

    def grow(self, job: Job, num_bytes: int, life_s: float) -> None:
        """Nothing is counted."""

    def weigh(self, job: Job, num_bytes: int, keep_s: float | None) -> None:
        """Nothing is counted."""

    def clone_for_thread(self) -> None:
        return None

    async def submit(
        self, job: Job, owner: str, max_depth: int, *, floor: int = 0, front: bool = False, share: Share = NO_SHARE
    ) -> Any:
        """As on Redis: until its outcome is known, or 2 s have passed."""
        until = self.site.loop.time() + SUBMIT_WITHIN_S
        verb: tuple[Any, ...] = ("submit", job, owner, max_depth)
        while True:
            try:
                if verb[0] == "submit":
                    return await self.ask(*verb, floor=floor, front=front)
                return await self.ask(*verb, floor, front)
            except QueueFull:
                raise
            except StoreUnavailable:
                if self.site.loop.time() > until:
                    raise
                verb = ("submit_again", *verb[1:])
                await asyncio.sleep(0.05)

    async def wait(self, worker_id: str, timeout_s: float) -> str | None:
        """The blocking pop: at the server it continues although no client waits for it any more."""
        site = self.site
        await self._turn("wait")
        if site.is_away or site.rng.random() < site.faults.lost_request:
            await asyncio.sleep(0.02)
            raise StoreUnavailable("away")
        answer = site.loop.create_future()
        task = site.loop.create_task(site.store.wait(worker_id, timeout_s), context=site.context)
        self.waits.add(task)
        task.add_done_callback(partial(self._waited, answer), context=site.context)
        moved: str | None = await answer
        return moved

    def _waited(self, answer: asyncio.Future[str | None], task: asyncio.Task[str | None]) -> None:
        self.waits.discard(task)
        is_lost = task.cancelled() or self.site.rng.random() < self.site.faults.lost_reply
        outcome = StoreUnavailable("the connection was lost") if is_lost else None
        moved = None if is_lost else task.result()
        self.process.at(self.site.loop.time() + HOP_S, _settle, answer, moved, outcome)

    async def ask(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Send a verb and wait for what becomes of it."""
        site, loop = self.site, self.site.loop
        await self._turn(verb)
        answer = loop.create_future()
        fate = self._fate()
        connection = self.lease if verb in _LEASE_VERBS else self.command
        arrives = connection.after(loop.time() + HOP_S * site.rng.random())
        loop.call_at(arrives, self._arrive, answer, fate, verb, args, kwargs, context=site.context)
        return await answer

    async def _turn(self, verb: str) -> None:
        """Here a process may be frozen or die between a thought and its word."""
        self.site.passes(self.process, verb)
        if not self.process.is_running:
            await asyncio.sleep(0)

    def _fate(self) -> str:
        draw, faults = self.site.rng.random(), self.site.faults
        for fate in ("lost_request", "lost_reply", "partial"):
            draw -= float(getattr(faults, fate))
            if draw < 0:
                return fate
        return ""

    def _arrive(self, answer: asyncio.Future[Any], fate: str, verb: str, args: tuple[Any, ...], kw: Any) -> None:
        site, now = self.site, self.site.loop.time()
        if site.is_away or fate == "lost_request":
            self._fail(answer, verb, fate or "away")
            return
        if fate == "partial" and verb in ("emit", "claim", "rerun", "hand_back"):
            parts = list(args[1])
            args = (args[0], parts[: site.rng.randrange(len(parts) + 1)])
        undo = site.store.partly(verb, args, site.rng) if fate == "partial" else None
        result, error = None, None
        try:
            result = _drive(getattr(site.store, verb)(*args, **kw))
        except PenstockError as raised:
            error = raised
        if undo is not None:
            undo()
        if verb not in ("tick", "renew", "take", "read"):
            said = [tuple(arg) if isinstance(arg, list) else arg for arg in args if not callable(arg)]
            site.note(self.process.name, verb, *said, error or result, fate)
        if fate:
            self._fail(answer, verb, fate)
        else:
            back = self.back.after(now + HOP_S * site.rng.random())
            self.process.at(back, self._answered, answer, result, error, site.epoch)

    def _answered(self, answer: asyncio.Future[Any], result: Any, error: Exception | None, epoch: int) -> None:
        lost = None if epoch == self.site.epoch else StoreUnavailable("the connection was lost")
        _settle(answer, result, error or lost)

    def _fail(self, answer: asyncio.Future[Any], verb: str, fate: str) -> None:
        rng = self.site.rng
        self.site.note(self.process.name, verb, fate)
        after_s = rng.uniform(0.3, 2.0) if rng.random() < self.site.faults.slow_failure else 0.02
        self.process.at(self.site.loop.time() + after_s, _settle, answer, None, StoreUnavailable(fate))

    # ── what is heard ────────────────────────────────────────────────────────────────────────────────────────────

    async def listen(self, gateway_id: str, on_event: Callable[[Event], None], on_reset: Callable[[], None]) -> None:
        if self.site.is_away:
            raise StoreUnavailable("away")
        self.gateway_id, self.on_event, self.on_reset = gateway_id, on_event, on_reset
        self.site.store.listeners[gateway_id] = self._published
        await asyncio.sleep(HOP_S)

    @property
    def is_listening(self) -> bool:
        return self.is_subscribed

    async def follow(self, job_id: str) -> None:
        self.followed.add(job_id)
        await asyncio.sleep(HOP_S)

    async def unfollow(self, job_id: str) -> None:
        self.followed.discard(job_id)

    async def watch(self, worker_id: str, on_cancel: Callable[[str, CancelReason], None]) -> None:
        self.hint = on_cancel
        await self.ask("watch", worker_id, self._hinted)

    def cut(self) -> None:
        """The subscription breaks; it stands again a little later, and what was published in between is lost."""
        self.is_subscribed = False
        for task in self.waits:
            task.cancel()
        self.process.at(self.site.loop.time() + RESUBSCRIBE_S, self._resubscribe)

    def _resubscribe(self) -> None:
        if self.site.is_away:
            self.process.at(self.site.loop.time() + RESUBSCRIBE_S, self._resubscribe)
        elif not self.is_subscribed:
            self.is_subscribed = True
            self.site.note(self.process.name, "subscribed again")
            if self.on_reset is not None:
                self.on_reset()

    def _published(self, event: Event) -> None:
        is_ours = event.job_id.partition(".")[0] == self.gateway_id or event.job_id in self.followed
        if not is_ours or not self.is_subscribed or self.on_event is None:
            return
        rng, faults = self.site.rng, self.site.faults
        times = 0 if rng.random() < faults.lost_publish else 1
        times += times and rng.random() < faults.repeated_publish
        if times != 1:
            self.site.note(self.process.name, "hears", times, event)
        delay_s = rng.random() * (faults.delay_s if rng.random() < faults.delayed_publish else HOP_S)
        for _ in range(times):
            self.process.at(self.channel.after(self.site.loop.time() + delay_s), self._hear, event)

    def _hear(self, event: Event) -> None:
        if self.is_subscribed and self.on_event is not None:
            self.on_event(event)

    def _hinted(self, job_id: str, reason: CancelReason) -> None:
        if self.hint is not None and self.is_subscribed and self.site.rng.random() >= self.site.faults.lost_publish:
            self.process.at(self.site.loop.time() + HOP_S, self.hint, job_id, reason)


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


def _drive(verb: Coroutine[Any, Any, Any]) -> Any:
    """Run a verb that never waits: at the store it is one moment."""
    try:
        verb.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError(f"{verb} waits")
