"""One simulated run: a seed in, what went wrong out.

It starts the processes of the plan, lets its faults happen, then ends them and waits for the promise to be kept:
every admitted request ended exactly once with its own tokens, nothing in a queue or list, no task left.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from penstock.event import Failed
from penstock.fleet import WorkerInfo
from penstock.job import Claim, Job
from penstock.transports import memory
from penstock.transports.base import MAX_DEATHS_IN_A_ROW
from tests.simulation.client import Client
from tests.simulation.loop import START, WALL, Killed, Process, Stuck, VirtualLoop, virtual
from tests.simulation.people import GRACE_S, Gateway, Worker
from tests.simulation.plan import BUSY_S, Fault, Plan, draw
from tests.simulation.store import ModelStore
from tests.simulation.tokens import chained
from tests.simulation.trouble import Trouble

CALM_WITHIN_S = 20.0
STOP_WITHIN_S = 15.0
MAX_STEPS = 400_000


Person = Worker | Gateway


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
            f"{at - START:9.4f}  {who:<10} {what:<16} {' '.join(map(shown, details))}"
            for at, who, what, details in self.log
        ]


def shown(value: object) -> str:
    """For the log: short, and the same whenever the run is."""
    if isinstance(value, Job | WorkerInfo):
        return value.id
    if isinstance(value, Claim):
        return f"{value.job.id}/{value.attempt} after {len(value.tokens)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(shown, value)))}}}"
    return str(value)


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
        self.is_stopping = self.is_calm = False
        self.trouble = Trouble(self)
        self.has_accidents = plan.has_accidents
        self.workers: list[Worker] = []
        self.gateways: list[Gateway] = []
        self.clients: list[Client] = []
        self._num_processes = 0
        self.loop.set_exception_handler(self._unhandled)
        self.store = ModelStore(lambda: WALL + self.loop.now - START, self.violate)

    @property
    def has_lost_data(self) -> bool:
        return self.trouble.is_data_lost

    @property
    def may_be_late(self) -> bool:
        """A gateway may need several tries to give a request back, for longer than others wait for it."""
        return self.trouble.is_data_lost and self.plan.has_losses

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

    def is_allowed(self, client: Client, error: Failed) -> bool:
        took = self.loop.now - client.asked_at
        match error.code:
            case "deadline_exceeded":
                return took >= client.ask.timeout_s - 0.01
            case "request_poisoned":
                return client.ask.trigger == "hang" or (
                    self.has_accidents and self.trouble.num_deaths >= MAX_DEATHS_IN_A_ROW
                )
            case "backend_error":
                return client.ask.trigger == "fail" and len(client.tokens) == client.ask.trigger_after
            case "request_not_found":
                return self.trouble.is_data_lost
            case "internal_error":  # a log that went back, and was ended otherwise before its gateway could say so
                return self.trouble.went_back
            case "no_workers":
                return took >= GRACE_S
            case "worker_lost":  # what no client had read would have been run again
                return not client.ask.resumes and (client.ask.stream or client.is_read)
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
                    self.trouble.kill_worker(worker, event.back_after_s)
                else:
                    self.trouble.freeze(process, event.for_s)

    def stalled(self, process: Process) -> None:
        """An engine hangs: its process ends itself, and a supervisor starts another one."""
        self.trouble.kill_worker(next(worker for worker in self.workers if worker.process is process), 0.5)

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> Outcome:
        with virtual(self.loop, self.rng):
            try:
                self.loop.run_until_complete(self._main())
            except Stuck:
                self.violate("everything waits without end")
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
        within_s = CALM_WITHIN_S + self.plan.most_work_s
        if not await self._until(lambda: not self._waiting(), within_s, self._who_waits):
            return
        ended = [client.ended_at for client in self.clients]
        self.outcome.calm_s = max(0.0, max(ended, default=0.0) - calm_at)
        if not await self._until(lambda: not self._left(), within_s, lambda: f"{self._left()} to empty"):
            return
        # Both in one moment: a store that has just lost a request of a client that has left may be given it back.
        if not await self._until(self._is_over, within_s, lambda: f"no request to be held, {self._running()} run"):
            return
        await self._stop()

    def _begin(self) -> None:
        plan = self.plan
        for _ in range(plan.num_gateways):
            self.add_gateway()
        for _ in range(plan.num_workers):
            self.add_worker()
        for ask in plan.asks:
            client = Client(self, ask)
            self.clients.append(client)
            self.loop.call_at(START + ask.at, client.act)
            if ask.again_at:
                self.loop.call_at(START + ask.again_at, client.once_more, context=self.context)
            if ask.read_at:
                self.loop.call_at(START + ask.read_at, client.read_too, context=self.context)
            if ask.leaves_after is not None and ask.leaves_after < 0:
                self.loop.call_at(START + ask.at - ask.leaves_after, client.leave)
        for event in plan.events:
            if event.kind not in ("kill_at", "freeze_at"):
                self.loop.call_at(START + event.at, self.trouble.strike, event)
        if plan.loses_data:
            self.trouble.take_snapshot()

    def _calm(self) -> None:
        """From here on nothing more goes wrong."""
        self.note("plan", "calm")
        self.is_calm = True
        self.plan.events.clear()
        self.faults.lost_publish = self.faults.repeated_publish = self.faults.delayed_publish = 0.0
        self.faults.lost_request = self.faults.lost_reply = self.faults.partial = 0.0
        if self.is_away:
            self.trouble.come_back(Fault(0.0, "away", 0, 0.0, 0.0))
        for person in self.people():
            person.process.wake()
        if not any(worker.is_up for worker in self.workers):
            self.add_worker()
        if not any(gateway.process.is_running and not gateway.is_stopping for gateway in self.gateways):
            self.add_gateway()

    async def _stop(self) -> None:
        for gateway in self.gateways:
            if gateway.process.is_alive:
                gateway.process.spawn(gateway.stop())
        self.is_stopping = True
        await self._until(lambda: not self._tasks(self.gateways), STOP_WITHIN_S, lambda: self._who_stays(self.gateways))
        await self._until(lambda: not self._left(), CALM_WITHIN_S, lambda: f"{self._left()} to empty")
        for worker in self.workers:
            worker.worker.stop()
        await self._until(lambda: not self._tasks(self.workers), STOP_WITHIN_S, lambda: self._who_stays(self.workers))
        if self._left():
            self.violate(f"after the workers have stopped there are {self._left()}")

    async def _unwind(self) -> None:
        for client in self.clients:
            how = client.error or client.state
            self.outcome.ends[how] = self.outcome.ends.get(how, 0) + 1
            client.state = "left"
        self.is_away = True
        self.store.listeners.clear()
        self.plan.events.clear()
        self.is_stopping = True
        for person in self.people():
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
        return self.store.holds(of_known_only=self.trouble.is_data_lost)

    def _running(self) -> dict[str, int]:
        """The gauge of each gateway that is not where it was before."""
        alive = (gateway for gateway in self.gateways if gateway.process.is_alive)
        return {gateway.id: gateway.num_running for gateway in alive if gateway.num_running}

    def _waiting(self) -> list[str]:
        return [client.name for client in self.clients if client.is_waiting or client.is_read_on]

    def _who_waits(self) -> str:
        return f"{self._waiting()} to end"

    def _is_over(self) -> bool:
        return self._is_idle() and not self._running()

    def _is_idle(self) -> bool:
        if any(worker.num_held for worker in self.workers if worker.process.is_alive):
            return False
        return self.trouble.is_data_lost or not any(
            self.store.state(client.job_id) == "running" for client in self.clients if client.state in ("left", "ended")
        )

    def people(self) -> list[Person]:
        return [*self.workers, *self.gateways]

    def _tasks(self, people: Sequence[Person]) -> list[asyncio.Task[Any]]:
        return [task for person in people if person.process.is_alive for task in person.process.pending()]

    def _who_stays(self, people: Sequence[Person]) -> str:
        return f"{self._tasks(people)} to end"

    # ── who is there ─────────────────────────────────────────────────────────────────────────────────────────────

    def _process(self, letter: str) -> Process:
        self._num_processes += 1
        return Process(self.loop, f"{letter}{self._num_processes}")

    def add_worker(self) -> None:
        if self.is_stopping:
            return
        worker = Worker(self, self._process("w"), self.plan)
        self.workers.append(worker)
        worker.task.add_done_callback(partial(self._ended, worker.process), context=self.context)

    def add_gateway(self) -> None:
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
        with chained():
            return Run(plan if plan is not None else draw(seed)).run()
    finally:
        memory._READERS_TURNS = turns
        logging.disable(disabled)
