"""What it brings that the last free batch slots wait for a pause in arrivals: `python -m bench.batch_slots`.

Penstock's batcher in a model on a virtual clock: every batch takes `GENERATION_S`, nothing else takes time. So this
shows what the rule itself does, the same on every machine; `make bench` measures the whole (its cells "burst 256").
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from itertools import count
from random import Random

from penstock.job import Batch, Claim, Job, Sampling
from penstock.worker import batcher
from penstock.worker.batcher import Batcher

WINDOW_S, GENERATION_S, BATCH_SLOTS, SIZE = 0.010, 0.320, 4, 64
UNTIL_S = 4.0
PAUSE_S = (0.001, 0.006)  # from an answer to the same client's next request

WAYS = {"they wait for nothing more": 0, "the last slot waits": 1, "the last two wait": 2}


class Model:
    """One worker, and requests that arrive at given times; in a `closed` loop each client asks again."""

    def __init__(self, arrivals: Iterable[float], *, is_closed: bool = False) -> None:
        self.events: list[tuple[float, int, Batch | None]] = []
        self.order = count()
        self.random = Random(0)
        self.is_closed = is_closed
        self.batcher = Batcher(SIZE, WINDOW_S, num_batch_slots=BATCH_SLOTS)
        self.free = BATCH_SLOTS
        self.queue: deque[Claim] = deque()
        self.arrived_at: dict[str, float] = {}
        self.waits_s: list[float] = []
        self.num_done = 0
        self.now = 0.0
        for at in arrivals:
            self.at(at)

    def at(self, when: float, ended: Batch | None = None) -> None:
        heapq.heappush(self.events, (when, next(self.order), ended))

    def run(self, until_s: float) -> Model:
        while self.events and self.events[0][0] <= until_s:
            self.now, number, ended = heapq.heappop(self.events)
            if ended is not None:
                self.free += 1
                self.num_done += len(ended)
                for _ in ended.claims if self.is_closed else ():
                    self.at(self.now + self.random.uniform(*PAUSE_S))
            else:
                job = Job(id=str(number), model="m", prompt="p", sampling=Sampling(max_tokens=64))
                self.arrived_at[job.id] = self.now
                self.queue.append(Claim(job, attempt=1, deadline_at=1e9))
            self.gather()
        return self

    def gather(self) -> None:
        """As the worker's loop does it; the batcher's own deadlines are met on the way."""
        while True:
            while self.queue and len(self.batcher) < SIZE * max(1, self.free):  # at most one batch ahead
                self.batcher.add(self.queue.popleft(), self.now)
            for batch in self.batcher.ready(self.now, self.free):
                self.free -= 1
                self.waits_s += [self.now - self.arrived_at[claim.job.id] for claim in batch.claims]
                self.at(self.now + GENERATION_S, batch)
            deadline = self.batcher.next_deadline(self.free) if self.free else None
            if deadline is None or (self.events and self.events[0][0] <= deadline):
                return
            self.now = max(self.now, deadline)


def burst(span_s: float) -> str:
    model = Model([span_s * number / 256 for number in range(256)]).run(10.0)
    late = sum(wait > GENERATION_S / 2 for wait in model.waits_s)
    return f"{late} of 256"


def steady(model: Model) -> str:
    waits = sorted(model.run(UNTIL_S).waits_s)
    p50, p99 = (1000 * waits[int(share * len(waits))] for share in (0.5, 0.99))
    return f"{model.num_done / UNTIL_S:,.0f}/s, {p50:.0f} / {p99:.0f} ms"


def poisson(rate: float) -> Iterable[float]:
    random, at = Random(1), 0.0
    while at < UNTIL_S:
        at += random.expovariate(rate)
        yield at


def main() -> None:
    rows: dict[str, list[str]] = {}
    usual = batcher.LAST_BATCH_SLOTS
    for last in WAYS.values():
        batcher.LAST_BATCH_SLOTS = last
        for span_ms in (53, 100, 200):
            name = f"256 arrive within {span_ms} ms: wait for a slot"
            rows.setdefault(name, []).append(burst(span_ms / 1000))
        for rate in (20, 200, 400):
            rows.setdefault(f"{rate} a second: served, wait p50 / p99", []).append(steady(Model(poisson(rate))))
        closed = Model([number / 256 for number in range(256)], is_closed=True)
        rows.setdefault("256 clients, one after another: the same", []).append(steady(closed))
    batcher.LAST_BATCH_SLOTS = usual
    print(f"| {BATCH_SLOTS} batch slots of {SIZE}, {1000 * GENERATION_S:.0f} ms a generation | {' | '.join(WAYS)} |")
    print("|---|--:|--:|--:|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
