"""What goes wrong in a simulated run, when its plan says so: to processes, to the store, to what is on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.transports.base import LEASE_S
from penstock.transports.memory_state import Snapshot
from tests.simulation.loop import START, Process
from tests.simulation.people import Gateway, Worker
from tests.simulation.plan import BUSY_S, Fault

if TYPE_CHECKING:
    from tests.simulation.run import Run

SNAPSHOT_EVERY_S = 0.7


class Trouble:
    """Does to `run` what its plan says. `went_back`: the store has shown an older state of itself."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.num_deaths = 0
        self.is_data_lost = self.went_back = False
        self.snapshots: list[Snapshot] = []

    def strike(self, event: Fault) -> None:
        if event not in self.run.plan.events:
            return
        workers = [worker for worker in self.run.workers if worker.is_up]
        gateways = [gateway for gateway in self.run.gateways if gateway.can_serve]
        match event.kind:
            case "kill_worker" if workers:
                self.kill_worker(workers[event.which % len(workers)], event.back_after_s)
            case "stop_worker" if workers:
                worker = workers[event.which % len(workers)]
                self.run.note("plan", "stops", worker.process.name)
                worker.process.at(self.run.loop.now, worker.worker.stop)
                self.run.loop.call_later(event.back_after_s, self.run.add_worker)
            case "freeze_worker" if workers:
                self.freeze(workers[event.which % len(workers)].process, event.for_s)
            case "freeze_gateway" if gateways:
                self.freeze(gateways[event.which % len(gateways)].process, event.for_s)
            case "kill_gateway" if gateways:
                self.kill_gateway(gateways[event.which % len(gateways)], event.back_after_s)
            case "away":
                self.go_away(event)
            case "flush" | "roll_back":
                self.lose_data(event.kind, event.which)
            case "cut":
                self.run.note("plan", "cuts every subscription")
                self.cut_all()
            case "lose_an_id":
                self.run.note("plan", "pops for nobody", self.run.store.lose_an_id())

    def kill_worker(self, worker: Worker, back_after_s: float) -> None:
        self.run.note("plan", "kills", worker.process.name)
        self.num_deaths += 1
        worker.process.kill()
        for wait in worker.wire.waits:  # the server sees the connection close a little later
            self.run.loop.call_later(self.run.rng.random() * 0.05, wait.cancel)
        self.run.loop.call_at(self.run.loop.now + back_after_s, self.run.add_worker, context=self.run.context)

    def kill_gateway(self, gateway: Gateway, back_after_s: float) -> None:
        self.run.note("plan", "kills", gateway.id)
        gateway.process.kill()
        self.run.store.listeners.pop(gateway.id, None)
        for client in self.run.clients:
            if client.gateway is gateway:
                client.cut()
        self.run.loop.call_later(back_after_s, self.run.add_gateway)

    def freeze(self, process: Process, for_s: float) -> None:
        if process.is_running:
            self.run.note("plan", "freezes", process.name, f"{for_s:.2f} s")
            self.num_deaths += for_s > LEASE_S / 2
            process.freeze()
            self.run.loop.call_at(self.run.loop.now + for_s, process.wake, context=self.run.context)

    def go_away(self, event: Fault) -> None:
        if not self.run.is_away:
            self.run.note("plan", "the store goes away", f"for {event.for_s:.2f} s", event.is_data_lost)
            self.run.is_away = True
            self.run.epoch += 1
            self.cut_all()
            self.run.loop.call_later(event.for_s, self.come_back, event)

    def come_back(self, event: Fault) -> None:
        if self.run.is_away:
            self.run.note("plan", "the store is back")
            self.run.is_away = False
            if event.is_data_lost:
                self.lose_data(event.is_data_lost, event.which)

    def lose_data(self, kind: str, which: int) -> None:
        self.is_data_lost = True
        recent = self.snapshots[-4:]
        snapshot = recent[which % len(recent)] if kind == "roll_back" and recent else None
        self.snapshots.clear()
        self.run.note("plan", kind if snapshot is not None else "flush")
        self.run.store.load(snapshot if snapshot is not None else Snapshot())
        self.went_back = self.went_back or snapshot is not None
        if snapshot is not None:  # a restart: no connection outlives it
            self.run.epoch += 1
            self.cut_all()

    def take_snapshot(self) -> None:
        if not self.run.is_away:
            self.snapshots.append(self.run.store.snapshot())
        if self.run.loop.now < START + BUSY_S:
            self.run.loop.call_later(SNAPSHOT_EVERY_S, self.take_snapshot)

    def cut_all(self) -> None:
        for person in self.run.people():
            if person.process.is_alive:
                person.wire.cut()
