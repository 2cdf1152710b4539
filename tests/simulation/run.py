"""One simulated run: a seed in, what went wrong out.

It starts the processes of the plan, lets its faults happen, then ends them and waits for the promise to be kept:
every admitted request ended exactly once with its own tokens, nothing in a queue or list, no task left.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from penstock.backends.mock import MockBackend
from penstock.event import Failed
from penstock.transports import memory
from penstock.transports.base import LEASE_S, MAX_DEATHS_IN_A_ROW
from tests.simulation.client import Client
from tests.simulation.loop import START, WALL, Killed, Process, Stuck, VirtualLoop, virtual
from tests.simulation.people import GRACE_S, Gateway, Worker
from tests.simulation.plan import BUSY_S, Fault, Plan, draw
from tests.simulation.store import ModelStore
from tests.simulation.wire import Faults

CALM_WITHIN_S = 20.0
STOP_WITHIN_S = 15.0
MAX_STEPS = 400_000
SNAPSHOT_EVERY_S = 0.7


class Violation(Exception):
    """A promise was broken; the run ends here."""


@dataclass(slots=True)
class Outcome:
    """`violation`: what was broken, None if all held. `longest_wait_s`: until the last client ended after the calm."""

    seed: int
    violation: str | None = None
    log: list[tuple[float, str, str, tuple[object, ...]]] = field(default_factory=list)
    num_steps: int = 0
    calm_s: float = 0.0
    ends: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        return [
            f"{at - START:9.4f}  {who:<10} {what:<16} {' '.join(map(str, details))}"
            for at, who, what, details in self.log
        ]


class Run:
    """The world of one seed. Implements what wires and clients need of it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcome = Outcome(plan.seed)
        self.loop = VirtualLoop()
        self.rng = random.Random(f"run {plan.seed}")
        self.context = contextvars.copy_context()
        self.faults = plan.faults
        self.is_away = False
        self.epoch = 0
        self.is_data_lost = self.is_stopping = False
        self.num_deaths = 0
        self.has_accidents = plan.has_accidents
        self.workers: list[Worker] = []
        self.gateways: list[Gateway] = []
        self.clients: list[Client] = []
        self.snapshots: list[dict[str, Any]] = []
        self._num_processes = 0
        self._expected: dict[str, list[str]] = {}
        self._mock = MockBackend()
        self.loop.set_exception_handler(self._unhandled)
        self.store = ModelStore(lambda: WALL + self.loop.now - START, self.expected, self.violate)

    # ── what its parts ask of it ─────────────────────────────────────────────────────────────────────────────────

    def now(self) -> float:
        return self.loop.now

    def note(self, who: str, what: str, *details: object) -> None:
        self.outcome.log.append((self.loop.now, who, what, details))

    def violate(self, text: str) -> None:
        if self.outcome.violation is None:
            self.note("!", text)
            self.outcome.violation = text

    def later(self, after_s: float, client: Client) -> None:
        self.loop.call_at(self.loop.now + after_s, client.act, context=self.context)

    def expected(self, job_id: str) -> list[str]:
        number = int(job_id.partition(".")[2])
        if job_id not in self._expected:
            ask = next(client.ask for client in self.clients if client.ask.number == number)
            self._expected[job_id] = self._mock.expected(ask.job("any"))
        return self._expected[job_id]

    def is_allowed(self, client: Client, error: Failed) -> bool:
        took = self.loop.now - client.asked_at
        match error.code:
            case "deadline_exceeded":
                return took >= client.ask.timeout_s - 0.01
            case "request_poisoned":
                return client.ask.trigger == "hang" or (self.has_accidents and self.num_deaths >= MAX_DEATHS_IN_A_ROW)
            case "backend_error":
                return client.ask.trigger == "fail" and len(client.tokens) == client.ask.trigger_after
            case "request_not_found":
                return self.is_data_lost
            case "no_workers":
                return took >= GRACE_S
            case _:
                return False

    def pick_gateway(self, which: int) -> Gateway | None:
        serving = [gateway for gateway in self.gateways if gateway.can_serve]
        return serving[which % len(serving)] if serving else None

    def passes(self, process: Process, point: str) -> None:
        """A process is about to do something: here its plan may freeze or kill it."""
        worker = next((worker for worker in self.workers if worker.process is process), None)
        if worker is None:
            return
        worker.passages[point] += 1
        number = self.workers.index(worker)
        for event in self.plan.events:
            if event.point == point and event.passage == worker.passages[point] and event.which % 3 == number:
                if event.kind == "kill_at":
                    self._kill_worker(worker, event.back_after_s)
                else:
                    self._freeze(process, event.for_s)

    def stalled(self, process: Process) -> None:
        """An engine hangs: its process ends itself, and a supervisor starts another one."""
        self._kill_worker(next(worker for worker in self.workers if worker.process is process), 0.5)

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> Outcome:
        with virtual(self.loop, self.rng):
            try:
                self.loop.run_until_complete(self._main())
            except Stuck:
                self.violate("everything waits, for ever")
            finally:
                self.loop.run_until_complete(self._unwind())
                self.loop.close()
        self.outcome.num_steps = self.loop.num_steps
        return self.outcome

    async def _main(self) -> None:
        self._begin()
        await self._until(lambda: self.loop.now >= START + BUSY_S, BUSY_S + 1.0, "the busy time to pass")
        calm_at = self.loop.now
        self._calm()
        if not await self._until(lambda: not self._waiting(), CALM_WITHIN_S + self.plan.most_work_s, self._who_waits):
            return
        ended = [client.ended_at for client in self.clients]
        self.outcome.calm_s = max(0.0, max(ended, default=0.0) - calm_at)
        if not await self._until(lambda: not self._left(), CALM_WITHIN_S, lambda: f"{self._left()} to empty"):
            return
        if not await self._until(self._is_idle, 5.0, "nobody to hold anything"):
            return
        await self._stop()

    def _begin(self) -> None:
        plan = self.plan
        for _ in range(plan.num_gateways):
            self._add_gateway()
        for _ in range(plan.num_workers):
            self._add_worker()
        for ask in plan.asks:
            client = Client(self, ask)
            self.clients.append(client)
            self.loop.call_at(START + ask.at, client.act)
            if ask.leaves_after is not None and ask.leaves_after < 0:
                self.loop.call_at(START + ask.at - ask.leaves_after, client.leave)
        for event in plan.events:
            if event.kind not in ("kill_at", "freeze_at"):
                self.loop.call_at(START + event.at, self._strike, event)
        if plan.loses_data:
            self._take_snapshot()

    def _people(self) -> list[Any]:
        """Workers and gateways alike: each has a `process` and a `wire`."""
        return [*self.workers, *self.gateways]

    def _calm(self) -> None:
        """From here on nothing more goes wrong."""
        self.note("plan", "calm")
        self.plan.events.clear()
        self.faults.lost_publish = self.faults.repeated_publish = self.faults.delayed_publish = 0.0
        self.faults.lost_request = self.faults.lost_reply = self.faults.partial = 0.0
        if self.is_away:
            self._come_back(Fault(0.0, "away", 0, 0.0, 0.0))
        for process in [person.process for person in self._people()]:
            process.wake()
        if not any(worker.is_up for worker in self.workers):
            self._add_worker()
        if not any(gateway.process.is_running and not gateway.is_stopping for gateway in self.gateways):
            self._add_gateway()

    async def _stop(self) -> None:
        self.is_stopping = True
        for worker in self.workers:
            worker.worker.stop()
        for gateway in self.gateways:
            if gateway.process.is_alive:
                gateway.process.spawn(gateway.stop())
        await self._until(lambda: not self._tasks(), STOP_WITHIN_S, lambda: f"{self._tasks()} to end")
        if self._left():
            self.violate(f"after the workers have stopped there are {self._left()}")

    async def _unwind(self) -> None:
        for client in self.clients:
            self.outcome.ends[client.state] = self.outcome.ends.get(client.state, 0) + 1
            client.state = "left"
        self.is_away = True
        self.store.ears.clear()
        self.plan.events.clear()
        self.is_stopping = True
        for person in self._people():
            await person.process.unwind()
            for wait in list(person.wire.waits):
                wait.cancel()
        await asyncio.sleep(5.0)

    async def _until(self, is_true: Callable[[], bool], limit_s: float, what: str | Callable[[], str]) -> bool:
        until = self.loop.now + limit_s
        while not is_true():
            if self.outcome.violation is not None:
                return False
            if self.loop.now > until or self.loop.num_steps > MAX_STEPS:
                self.violate(f"waited {limit_s:g} s for {what if isinstance(what, str) else what()}")
                return False
            await asyncio.sleep(0.05)
        return self.outcome.violation is None

    def _left(self) -> dict[str, list[str]]:
        return self.store.holds(of_known_only=self.is_data_lost)

    def _waiting(self) -> list[str]:
        return [client.name for client in self.clients if client.is_waiting]

    def _who_waits(self) -> str:
        return f"{self._waiting()} to end"

    def _is_idle(self) -> bool:
        if any(worker.num_held for worker in self.workers if worker.process.is_alive):
            return False
        return self.is_data_lost or not any(
            self.store.state(client.job_id) == "running" for client in self.clients if client.state in ("left", "ended")
        )

    def _tasks(self) -> list[str]:
        people = self._people()
        return [repr(task) for person in people if person.process.is_alive for task in person.process.pending()]

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────

    def _strike(self, event: Fault) -> None:
        if event not in self.plan.events:
            return
        workers = [worker for worker in self.workers if worker.is_up]
        gateways = [gateway for gateway in self.gateways if gateway.can_serve]
        match event.kind:
            case "kill_worker" if workers:
                self._kill_worker(workers[event.which % len(workers)], event.back_after_s)
            case "stop_worker" if workers:
                worker = workers[event.which % len(workers)]
                self.note("plan", "stops", worker.process.name)
                worker.process.at(self.loop.now, worker.worker.stop)
                self.loop.call_later(event.back_after_s, self._add_worker)
            case "freeze_worker" if workers:
                self._freeze(workers[event.which % len(workers)].process, event.for_s)
            case "freeze_gateway" if gateways:
                self._freeze(gateways[event.which % len(gateways)].process, event.for_s)
            case "kill_gateway" if gateways:
                self._kill_gateway(gateways[event.which % len(gateways)], event.back_after_s)
            case "away":
                self._go_away(event)
            case "flush" | "roll_back":
                self._lose_data(event.kind, event.which)
            case "cut":
                self.note("plan", "cuts every subscription")
                self._cut_all()
            case "lose_an_id":
                self.note("plan", "pops for nobody", self.store.lose_an_id())

    def _kill_worker(self, worker: Worker, back_after_s: float) -> None:
        self.note("plan", "kills", worker.process.name)
        self.num_deaths += 1
        worker.process.kill()
        for wait in worker.wire.waits:  # the server sees the connection close a little later
            self.loop.call_later(self.rng.random() * 0.05, wait.cancel)
        self.loop.call_at(self.loop.now + back_after_s, self._add_worker, context=self.context)

    def _kill_gateway(self, gateway: Gateway, back_after_s: float) -> None:
        self.note("plan", "kills", gateway.id)
        gateway.process.kill()
        self.store.ears.pop(gateway.id, None)
        for client in self.clients:
            if client.gateway is gateway:
                client.cut()
        self.loop.call_later(back_after_s, self._add_gateway)

    def _freeze(self, process: Process, for_s: float) -> None:
        if process.is_running:
            self.note("plan", "freezes", process.name, f"{for_s:.2f} s")
            self.num_deaths += for_s > LEASE_S / 2
            process.freeze()
            self.loop.call_at(self.loop.now + for_s, process.wake, context=self.context)

    def _go_away(self, event: Fault) -> None:
        if not self.is_away:
            self.note("plan", "the store goes away", f"for {event.for_s:.2f} s", event.is_data_lost)
            self.is_away = True
            self.epoch += 1
            self._cut_all()
            self.loop.call_later(event.for_s, self._come_back, event)

    def _come_back(self, event: Fault) -> None:
        if self.is_away:
            self.note("plan", "the store is back")
            self.is_away = False
            if event.is_data_lost:
                self._lose_data(event.is_data_lost, event.which)

    def _lose_data(self, kind: str, which: int) -> None:
        self.is_data_lost = True
        recent = self.snapshots[-4:]
        snapshot = recent[which % len(recent)] if kind == "roll_back" and recent else None
        self.snapshots.clear()
        self.note("plan", kind if snapshot is not None else "flush")
        self.store.load(snapshot)
        if snapshot is not None:  # a restart: nobody's connection outlives it
            self.epoch += 1
            self._cut_all()

    def _take_snapshot(self) -> None:
        if not self.is_away:
            self.snapshots.append(self.store.snapshot())
        if self.loop.now < START + BUSY_S:
            self.loop.call_later(SNAPSHOT_EVERY_S, self._take_snapshot)

    def _cut_all(self) -> None:
        for person in self._people():
            if person.process.is_alive:
                person.wire.cut()

    # ── who is there ─────────────────────────────────────────────────────────────────────────────────────────────

    def _process(self, letter: str) -> Process:
        self._num_processes += 1
        return Process(self.loop, f"{letter}{self._num_processes}")

    def _add_worker(self) -> None:
        if self.is_stopping:
            return
        worker = Worker(self, self._process("w"), self.plan)
        self.workers.append(worker)
        worker.task.add_done_callback(partial(self._ended, worker.process), context=self.context)

    def _add_gateway(self) -> None:
        if self.is_stopping:
            return
        gateway = Gateway(self, self._process("g"), self.plan)
        self.gateways.append(gateway)
        for task in gateway.tasks:
            task.add_done_callback(partial(self._ended, gateway.process), context=self.context)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.violate(f"{context['message']}: {error!r}")

    def _ended(self, process: Process, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Killed) and process.is_alive:
            self.violate(f"{process.name} failed: {error!r}")


def simulate(seed: int, plan: Plan | None = None) -> Outcome:
    """Run one seed. `plan`: another one than the seed means."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    turns, memory._READERS_TURNS = memory._READERS_TURNS, 0  # a hop takes time here anyway
    try:
        run = Run(plan if plan is not None else draw(seed))
        return run.run()
    finally:
        memory._READERS_TURNS = turns
        logging.disable(disabled)


__all__ = ["Faults", "Outcome", "Run", "simulate"]
