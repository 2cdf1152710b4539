"""One run of one scenario: its plant, its load, the faults that it counted, and what came of it."""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.books import balance
from tests.chaos.http import post
from tests.chaos.ledger import Entry, percentile
from tests.chaos.load import Habits, Load
from tests.chaos.plant import Member, Plant

MODEL = "mock=mock:step_ms=40,chain=true"
# Clients come one by one, so batches are small and many. A worker's supervisor only where it matters: it tells of its
# child's death at once, and most scenarios are about a death that no process reports.
USUAL = ("--max-batches", "128", "--max-batch-size", "4", "--no-supervised")
END_WITHIN_S = 60.0
NEAR_S = 0.1  # a pause begins with the last token before its fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The figure to hold, and its bounds (milliseconds). Beyond them a run is reported as slower, and three times
    beyond them (`--slack`) as broken: other programs on the machine are no fault of Penstock.

    `counts`: whose pauses are measured: those that a fault interrupted ("attempt": another worker went on, "resumed":
    the client came back), or all that were open at some fault ("open").
    """

    says: str
    p99_ms: float | None = None
    max_ms: float | None = None
    counts: str = "open"


@dataclass(slots=True)
class Result:
    """What the report says of one scenario."""

    name: str
    seed: int
    seconds: float
    target: str
    injected: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    done: int = 0
    left: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    repeated: int = 0
    interrupted: int = 0
    pause_ms: dict[str, float] = field(default_factory=dict)
    first_token_ms: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    slower: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: str = ""


class Skip(Exception):
    """This scenario needs what is not there; the message says what."""


class Run:
    """What a scenario is given. `seconds`: how long it should go on; `slack` multiplies bounds on figures."""

    def __init__(self, directory: Path, seed: int, seconds: float, is_long: bool, slack: float) -> None:
        self.rng = random.Random(seed)
        self.seconds = seconds
        self.is_long = is_long
        self.slack = slack
        self.plant = Plant(directory)
        self.load = Load(list, self.rng, Habits())
        self.injected: Counter[str] = Counter()
        self.faults_at: list[float] = []
        self.notes: dict[str, Any] = {}
        self.slower: list[str] = []
        self.problems: list[str] = []
        self.settle_s = 10.0

    async def build(
        self,
        *,
        workers: int,
        gateways: int = 1,
        habits: Habits | None = None,
        worker_args: tuple[str, ...] = (),
        gateway_args: tuple[str, ...] = (),
    ) -> None:
        """Start the plant, warm it up, and note what its processes use before."""
        self.plant.worker_args = (*USUAL, *(() if "--model" in worker_args else ("--model", MODEL)), *worker_args)
        self.plant.gateway_args = gateway_args
        await self.plant.fill(workers, gateways)
        self.load = Load(lambda: [one for one in self.plant.gateways if one.is_alive], self.rng, habits or Habits())
        body = {"prompt": "warm", "max_tokens": 2, "model": self.load.habits.model}
        warm = [post(gateway.url, "/v1/generate", body) for gateway in self.plant.gateways for _ in range(8)]
        for status, answer in await asyncio.gather(*warm):
            assert status == 200, f"it does not even work unharmed: {status} {answer!r}"
        for gateway in self.plant.gateways:
            for _ in range(8):  # in the books as well
                entry = Entry("warm", 2, is_stream=False, gateway=gateway.name, outcome="done")
                entry.tokens = ["", ""]
                self.load.entries.append(entry)
        for member in self.plant.members:
            member.before = member.use()

    def inject(self, what: str) -> None:
        """A fault is about to happen."""
        self.injected[what] += 1
        self.faults_at.append(time.monotonic())

    def check(self, is_true: bool, problem: str) -> None:
        if not is_true:
            self.problems.append(problem)

    def bound(self, what: str, seconds: float, target_s: float) -> None:
        """A time of its own that this scenario measures: noted, and checked with slack."""
        self.notes[what] = f"{seconds * 1000:.0f} ms (target {target_s * 1000:.0f})"
        self._judge(seconds, target_s, f"{what}: {seconds:.2f} s, and {target_s:g} is the target")

    def _judge(self, value: float, target: float, says: str) -> None:
        if value > target:
            (self.slower if value <= target * self.slack else self.problems).append(says)

    async def until(self, is_true: Callable[[], Awaitable[Any]], what: str, timeout_s: float = 15.0) -> float:
        """How long it took until it is true. `AssertionError` after `timeout_s`."""
        began = time.monotonic()
        while not await is_true():
            assert time.monotonic() - began < timeout_s, f"waited {timeout_s:g} s: {what}"
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def until_streaming(self, num: int = 1, tokens: int = 1, timeout_s: float = 20.0) -> None:
        """Until so many requests have so many tokens."""

        async def is_so() -> bool:
            return sum(len(entry.tokens) >= tokens for entry in self.load.open_entries) >= num

        await self.until(is_so, f"{num} streams have {tokens} tokens", timeout_s)

    async def kill(self, member: Member) -> None:
        """kill -9, and another one in its place."""
        self.inject(f"kill -9 {member.kind}")
        member.kill()
        await member.ended()
        await self.plant.replace(member)

    async def finish(self, target: Target) -> None:
        """Stop asking, wait for the last answers, and check every token and request."""
        await self.load.stop(END_WITHIN_S)
        self.problems += await balance(self.plant, self.load, self.settle_s)
        for shown, share, bound in (("p99", 0.99, target.p99_ms), ("max", 1.0, target.max_ms)):
            if bound is not None:
                pauses = self._pauses_of_one(target, bound)
                value = percentile(pauses, share) if pauses else 0.0
                self._judge(value, bound, f"pause {shown} {value:.0f} ms, and {bound:g} is the target")

    def _pauses_of_one(self, target: Target, bound_ms: float) -> list[float]:
        """The pauses, ms, that `bound_ms` is for: that of one fault. A longer one in which a second fault fell, which
        hit the process that had just taken the work over, is kept apart."""
        hit = self._interrupted(target)
        twice = [
            entry.longest_pause_s * 1000
            for entry in hit
            if entry.longest_pause_s * 1000 > bound_ms and self._num_faults_in_pause(entry) > 1
        ]
        if twice:
            self.notes["longer pauses with a second fault in them"] = f"{len(twice)}, up to {max(twice):.0f} ms"
        return [entry.longest_pause_s * 1000 for entry in hit if entry.longest_pause_s * 1000 not in twice]

    def _num_faults_in_pause(self, entry: Entry) -> int:
        """How many faults fell into its longest pause: a target is for one."""
        began = entry.paused_until - entry.longest_pause_s
        return sum(began - NEAR_S <= at <= entry.paused_until for at in self.faults_at)

    def _interrupted(self, target: Target) -> list[Entry]:
        found = []
        for entry in self.load.entries:
            if not entry.first_at or not entry.is_stream or entry.outcome == "left":
                continue
            if target.counts == "attempt":
                is_hit = len(entry.attempts) > 1
            elif target.counts == "resumed":
                is_hit = entry.num_resumed > 0
            else:
                is_hit = any(entry.first_at <= at <= (entry.ended_at or at) for at in self.faults_at)
            if is_hit:
                found.append(entry)
        return found

    def _pauses(self, target: Target, share: float) -> float | None:
        values = [entry.longest_pause_s * 1000 for entry in self._interrupted(target)]
        return percentile(values, share) if values else None

    def result(self, name: str, seed: int, target: Target) -> Result:
        entries = [entry for entry in self.load.entries if entry.prompt != "warm"]
        by: Callable[[str], dict[str, int]] = lambda outcome: dict(  # noqa: E731 - said twice below
            sorted(Counter(entry.code for entry in entries if entry.outcome == outcome).items())
        )
        first = [entry.first_token_s * 1000 for entry in entries if entry.first_token_s is not None and entry.is_stream]
        shares = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        pauses = {shown: self._pauses(target, share) for shown, share in shares}
        return Result(
            name=name,
            seed=seed,
            seconds=round(self.seconds, 1),
            target=target.says,
            injected=dict(self.injected),
            requests=len(entries),
            done=sum(entry.outcome == "done" for entry in entries),
            left=sum(entry.outcome == "left" for entry in entries),
            failed=by("failed"),
            refused=by("refused"),
            lost=sum(entry.num_lost for entry in entries) + sum(entry.outcome in ("open", "cut") for entry in entries),
            repeated=sum(entry.num_repeated for entry in entries),
            interrupted=len(self._interrupted(target)),
            pause_ms={shown: round(value, 1) for shown, value in pauses.items() if value is not None},
            first_token_ms={shown: round(percentile(first, share), 1) for shown, share in shares} if first else {},
            notes=self.notes,
            slower=self.slower,
            problems=self.problems,
        )

    def story(self) -> list[dict[str, Any]]:
        """Every request that is part of a problem, and the slowest, without tokens, to look into it."""
        begun = min((entry.sent_at for entry in self.load.entries), default=0.0)
        story: list[dict[str, Any]] = [{"fault_at": round(at - begun, 3)} for at in self.faults_at]
        slowest = sorted(self.load.entries, key=lambda entry: -entry.longest_pause_s)[:20]
        for entry in self.load.entries:
            if entry.problems() or entry in slowest:
                story.append(
                    {
                        "id": entry.request_id,
                        "gateway": entry.gateway,
                        "stream": entry.is_stream,
                        "outcome": entry.outcome,
                        "code": entry.code,
                        "tokens": len(entry.tokens),
                        "of": entry.max_tokens,
                        "attempts": entry.attempts,
                        "pause": round(entry.longest_pause_s, 3),
                        "paused_until": round(entry.paused_until - begun, 3),
                        "resumed": entry.num_resumed,
                        "sent": round(entry.sent_at - begun, 3),
                        "last": round(entry.last_at - begun, 3),
                        "ended": round(entry.ended_at - begun, 3),
                        "problems": entry.problems(),
                    }
                )
        return story


def told(error: BaseException) -> str:
    """An exception of the driver's own, with the place where it happened."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
