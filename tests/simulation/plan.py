"""What a seed means: how many processes, which requests, and what goes wrong when. Drawn whole before the run.

Each run has a few kinds of faults only, so that some runs are hard on one rule and quiet on all others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from penstock.job import Job, OnDisconnect, Sampling
from penstock.transports.base import LEASE_S
from penstock.worker.crash_points import POINTS
from tests.simulation.wire import Faults

MODEL = "mock"
ONCE = "in one piece"  # in the prompt of what cannot be continued
BUSY_S = 8.0
DEATHS_S = 45.0  # what it takes to be poisoned: a stall and a lease for each death
KEPT_S = 3600.0
VERBS = ("wait", "take", "claim", "emit", "renew", "reap", "hand_back", "enlist")

Kind = Literal[
    "kill_worker", "freeze_worker", "stop_worker", "kill_gateway", "freeze_gateway", "stop_gateway", "away",
    "cut", "flush", "roll_back", "lose_an_id", "kill_at", "freeze_at",
]  # fmt: skip
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]


@dataclass(slots=True)
class Fault:
    """`at` and `for_s` are seconds. `which` picks a process, `point` and `passage` where it is hit."""

    at: float
    kind: Kind
    which: int
    for_s: float
    back_after_s: float
    is_data_lost: Literal["", "flush", "roll_back"] = ""
    point: str = ""
    passage: int = 0


@dataclass(slots=True)
class Ask:
    """One request and its client. `leaves_after`: it hangs up when it has so many tokens, or, below 0, so late.

    `is_background`: it is answered at once, and polled, also after its end. `again_at`: the same POST once more, with
    the same idempotency key; the request has one then. `read_at`: another client reads its events from then on. Both
    are seconds from the start of the run, 0 for never. `resumes`: its answer can be continued after a death.
    """

    number: int
    at: float
    prompt: str
    sampling: Sampling
    stream: bool
    timeout_s: float
    on_disconnect: OnDisconnect
    leaves_after: float | None
    which: int
    trigger: Literal["", "fail", "hang"] = ""
    trigger_after: int = 0
    is_background: bool = False
    again_at: float = 0.0
    read_at: float = 0.0
    resumes: bool = True

    def job(self, gateway_id: str, *, is_again: bool = False) -> Job:
        prompt = self.prompt if self.resumes else f"{self.prompt} {ONCE}"
        return Job(
            id=f"{gateway_id}.{self.number:03}{'b' * is_again}",
            model=MODEL,
            prompt=f"{prompt} [[{self.trigger}_after={self.trigger_after}]]" if self.trigger else prompt,
            sampling=self.sampling,
            timeout_s=self.timeout_s,
            on_disconnect=self.on_disconnect,
            stream=self.stream,
            retention_s=KEPT_S if self.is_background or self.again_at else None,
        )


@dataclass(slots=True)
class Plan:
    """See the head of this file."""

    seed: int
    num_workers: int
    num_gateways: int
    max_batch_size: int
    max_batches: int
    step_ms: float
    step_ms_per_seq: float
    max_depth: int
    faults: Faults
    asks: list[Ask] = field(default_factory=list)
    events: list[Fault] = field(default_factory=list)
    has_losses: bool = False  # of commands or their replies

    @property
    def most_work_s(self) -> float:
        """How long one worker takes for all of it, one after the other."""
        hangs = sum(ask.trigger == "hang" for ask in self.asks) * DEATHS_S
        return hangs + sum(ask.sampling.max_tokens for ask in self.asks) * (self.step_ms + self.step_ms_per_seq) / 1000

    @property
    def has_accidents(self) -> bool:
        """Workers die or freeze that have done nothing."""
        return any(event.kind in ("kill_worker", "freeze_worker", "kill_at", "freeze_at") for event in self.events)

    @property
    def loses_data(self) -> bool:
        return any(e.kind in ("flush", "roll_back") or e.is_data_lost for e in self.events)


def draw(seed: int) -> Plan:
    rng = random.Random(f"plan {seed}")
    plan = Plan(
        seed=seed,
        num_workers=rng.randint(1, 3),
        num_gateways=rng.randint(1, 2),
        max_batch_size=rng.choice((1, 2, 4)),
        max_batches=rng.choice((1, 2)),
        step_ms=rng.choice((0.0, 5.0, 40.0, 120.0, 400.0)),
        step_ms_per_seq=rng.choice((0.0, 2.0)),
        max_depth=rng.choice((3, 100, 100)),
        faults=_draw_faults(rng),
    )
    plan.has_losses = bool(plan.faults.lost_request or plan.faults.lost_reply or plan.faults.partial)
    has_deadlines = rng.random() < 0.25
    has_leavers = rng.random() < 0.4
    trigger: Literal["", "fail", "hang"] = rng.choices(("", "fail", "hang"), (0.75, 0.15, 0.1))[0]
    plan.asks = [_draw_ask(rng, number, has_deadlines, has_leavers) for number in range(rng.randint(3, 9))]
    if trigger:
        plan.asks[0].trigger = trigger
        plan.asks[0].trigger_after = rng.randrange(plan.asks[0].sampling.max_tokens)
    plan.asks.sort(key=lambda ask: ask.at)
    _make_objects(plan)
    kinds = rng.sample(KINDS, rng.randint(0, 4))
    if kinds:
        plan.events = [_draw_event(rng, rng.choice(kinds)) for _ in range(rng.randint(1, 6))]
        plan.events.sort(key=lambda event: event.at)
    _make_reruns(plan)
    return plan


def _make_objects(plan: Plan) -> None:
    """Some requests are kept: in the background, or under a key. Drawn apart, so that seeds go on meaning the rest."""
    rng = random.Random(f"objects {plan.seed}")
    for ask in plan.asks:
        if rng.random() < 0.35 and not ask.trigger and ask.timeout_s > 100.0:
            ask.leaves_after = None
            if rng.random() < 0.6:
                ask.is_background, ask.on_disconnect = True, "continue"
            else:
                ask.on_disconnect = "resume"
                ask.again_at = ask.at + rng.random() * BUSY_S


def _make_reruns(plan: Plan) -> None:
    """In some runs answers cannot be continued, and most of them are whole. Drawn apart, as above.

    Others may begin to read them, often just when a worker's lease has lapsed and the next one has its answers.
    """
    rng = random.Random(f"reruns {plan.seed}")
    if rng.random() < 0.5:
        return
    deaths = [event.at for event in plan.events if event.kind in ("kill_worker", "freeze_worker", "stop_worker")]
    for ask in plan.asks:
        ask.resumes = rng.random() < 0.3
        ask.stream = ask.stream and rng.random() < 0.3
        if not ask.stream and rng.random() < 0.6:
            ask.read_at = ask.at + rng.random() * BUSY_S / 2
            if deaths and rng.random() < 0.7:
                ask.read_at = max(ask.at, rng.choice(deaths) + LEASE_S + rng.uniform(-0.6, 0.6))
    if rng.random() < 0.4:
        plan.faults.lost_publish = plan.faults.delayed_publish = 0.4
    for event in plan.events:
        if event.kind in ("kill_at", "freeze_at") and rng.random() < 0.2:
            event.point, event.passage = "rerun", 1


def _draw_faults(rng: random.Random) -> Faults:
    def some(most: float) -> float:
        return rng.random() * most if rng.random() < 0.25 else 0.0

    return Faults(
        lost_publish=some(0.5),
        repeated_publish=some(0.5),
        delayed_publish=some(0.5),
        delay_s=rng.choice((0.01, 0.3, 2.0)),
        lost_request=some(0.15),
        lost_reply=some(0.15),
        partial=some(0.15),
    )


def _draw_ask(rng: random.Random, number: int, has_deadlines: bool, has_leavers: bool) -> Ask:
    leaves: float | None = None
    if has_leavers and rng.random() < 0.4:
        leaves = float(rng.randrange(6)) if rng.random() < 0.6 else -rng.random() * 4
    return Ask(
        number=number,
        at=rng.random() * BUSY_S * 0.6,
        prompt=f"request {number}",
        sampling=Sampling(max_tokens=rng.choice((1, 3, 8, 20))),
        stream=rng.random() < 0.8,
        timeout_s=rng.uniform(0.5, 8.0) if has_deadlines and rng.random() < 0.5 else 600.0,
        on_disconnect=rng.choice(("cancel", "cancel", "resume", "continue")),
        leaves_after=leaves,
        which=rng.randrange(100),
    )


def _draw_event(rng: random.Random, kind: Kind) -> Fault:
    event = Fault(
        at=rng.random() * BUSY_S,
        kind=kind,
        which=rng.randrange(100),
        for_s=rng.choice((0.2, 1.0, 3.0, 6.0)) * rng.uniform(0.5, 1.0),
        back_after_s=rng.choice((0.0, 0.5, 3.0)),
    )
    if kind == "away":
        event.is_data_lost = rng.choice(("", "flush", "roll_back"))
    if kind in ("kill_at", "freeze_at"):
        event.point = rng.choice((*POINTS, *VERBS))
        event.passage = rng.choice((1, 1, 2, 3, 5, 8))
    return event
