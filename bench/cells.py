"""What is measured (cells), and what is asked of it (goals): the table "What to reach", as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.stacks import WINDOW_MS

STEP_MS = 5.0

Run = Mapping[str, Any]  # what `penstock bench --json` said, and `cpu_s` of the servers over it
Round = Mapping[str, Mapping[str, Run]]  # cell → system → run


@dataclass(frozen=True)
class Cell:
    """One load on several systems. `rate` 0: closed loop of `concurrency`.

    `is_burst`: instead, `concurrency` new connections with one request each, all at the same moment; the median of
    `BURSTS` such bursts.
    """

    name: str
    step_ms: float
    systems: tuple[str, ...]
    concurrency: int
    tokens: int = 64
    rate: float = 0.0
    is_stream: bool = True
    is_in_ci: bool = False
    is_burst: bool = False
    stretch: float = 1.0  # longer by this, where the naive form's answers take seconds


# `defaults`: as `penstock`, with the worker's own numbers of batches and slots.
THREE = ("bare", "penstock", "naive")
CELLS = (
    Cell("stream 32", 0.0, (*THREE, "embedded"), 32, is_in_ci=True),
    Cell("stream 256", 0.0, (*THREE, "embedded"), 256, is_in_ci=True),
    Cell("stream 1024", 0.0, THREE, 1024, tokens=16, stretch=2.0),
    Cell("json 32", 0.0, THREE, 32, is_stream=False),
    Cell("json 256", 0.0, THREE, 256, is_stream=False, is_in_ci=True),
    Cell("paced 1", STEP_MS, ("bare", "penstock"), 1, is_in_ci=True),
    Cell("paced 32", STEP_MS, THREE, 32),
    Cell("paced 256", STEP_MS, THREE, 256, is_in_ci=True),
    Cell("paced 512", STEP_MS, ("bare", "penstock"), 512),
    Cell("open 400", STEP_MS, ("bare", "penstock"), 10_000, rate=400.0),
    Cell("burst 256", STEP_MS, ("bare", "penstock", "defaults"), 256, is_burst=True, is_in_ci=True),
)
BURSTS = 5


@dataclass(frozen=True)
class Goal:
    """One figure, computed within one round (None: that round has none), and the bound that it is to keep.

    `gate` is CI's bound, much wider.
    """

    row: str
    says: str
    value: Callable[[Round], float | None]
    reach: float
    is_least: bool  # the value must be at least `reach`; else at most
    gate: float | None = None
    unit: str = "×"

    def holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.is_least else value <= bound


def _speed(run: Run) -> float:
    """Whole answers come at once: in a short window their tokens would be counted by the luck of its edges."""
    return float(run["tokens_per_s"] if run["plan"]["stream"] else run["requests_per_s"])


def ratio(cell: str, system: str, to: str) -> Callable[[Round], float | None]:
    """None when the other one gave nothing within its window: then there is nothing to divide by."""

    def value(seen: Round) -> float | None:
        base = _speed(seen[cell][to])
        return _speed(seen[cell][system]) / base if base else None

    return value


def added_ttft(cell: str, quantile: str) -> Callable[[Round], float]:
    def value(seen: Round) -> float:
        ours, bare = (seen[cell][system]["ttft_ms"] for system in ("penstock", "bare"))
        return float(ours[quantile] - bare[quantile])

    return value


def efficiency(cell: str, concurrency: int) -> Callable[[Round], float]:
    def value(seen: Round) -> float:
        return 100 * float(seen[cell]["penstock"]["tokens_per_s"]) / (concurrency * 1000 / STEP_MS)

    return value


def burst(cell: str, system: str) -> Callable[[Round], float]:
    """How long the whole burst took, as a share of what its steps alone take."""
    tokens = next(one.tokens for one in CELLS if one.name == cell)
    return lambda seen: 100 * tokens * STEP_MS / float(seen[cell][system]["e2e_ms"]["max"])


def cpu_per_token(run: Run) -> float:
    return float(run["cpu_s"]) / max(1, int(run["tokens_with_warmup"])) * 1000


def cpu_ratio(cell: str) -> Callable[[Round], float]:
    def value(seen: Round) -> float:
        return cpu_per_token(seen[cell]["penstock"]) / max(cpu_per_token(seen[cell]["bare"]), 1e-9)

    return value


def failed(*cells: str) -> Callable[[Round], float]:
    return lambda seen: float(sum(seen[cell]["penstock"]["failed"] for cell in cells))


def probe(name: str) -> Callable[[Round], float]:
    return lambda seen: float(seen["probes"]["penstock"][name])


_W = WINDOW_MS
GOALS = (
    Goal("a", "stream, no compute, c=32, to naive", ratio("stream 32", "penstock", "naive"), 10, True, 4),
    Goal("a", "stream, no compute, c=256, to naive", ratio("stream 256", "penstock", "naive"), 20, True, 4),
    Goal("a", "stream, no compute, c=1024 (16 tokens), to naive", ratio("stream 1024", "penstock", "naive"), 7, True),
    Goal("a", "stream, no compute, c=32, to bare", ratio("stream 32", "penstock", "bare"), 0.45, True, 0.18),
    Goal("a", "stream, no compute, c=256, to bare", ratio("stream 256", "penstock", "bare"), 1.3, True, 0.3),
    Goal("a", "stream, no compute, c=1024 (16 tokens), to bare", ratio("stream 1024", "penstock", "bare"), 0.7, True),
    Goal(
        "a",
        "failed streams in these",
        failed("stream 32", "stream 256", "stream 1024"),
        0,
        False,
        unit="",
    ),
    Goal("b", "JSON, no compute, c=32, to naive", ratio("json 32", "penstock", "naive"), 10, True),
    Goal("b", "JSON, no compute, c=256, to naive", ratio("json 256", "penstock", "naive"), 16, True, 5),
    Goal("c", "first token over bare, c=1, p50", added_ttft("paced 1", "p50"), _W + 2, False, _W + 20, "ms"),
    Goal("c", "first token over bare, c=256, p50", added_ttft("paced 256", "p50"), _W + 9, False, unit="ms"),
    Goal("c", "first token over bare, c=256, p99", added_ttft("paced 256", "p99"), _W + 45, False, unit="ms"),
    Goal("c", "first token over bare, open loop 400/s, p99", added_ttft("open 400", "p99"), _W + 5, False, unit="ms"),
    Goal("d", "efficiency at 5 ms a step, c=1", efficiency("paced 1", 1), 95, True, 60, "%"),
    Goal("d", "efficiency at 5 ms a step, c=32", efficiency("paced 32", 32), 94, True, unit="%"),
    Goal("d", "efficiency at 5 ms a step, c=256", efficiency("paced 256", 256), 92, True, 37, "%"),
    Goal("d", "efficiency at 5 ms a step, c=512", efficiency("paced 512", 512), 80, True, unit="%"),
    Goal("d", "256 new connections at once: efficiency", burst("burst 256", "penstock"), 80, True, 30, "%"),
    Goal("d", "the same, worker's defaults (4 batch slots of 64)", burst("burst 256", "defaults"), 65, True, 25, "%"),
    Goal("e", "CPU per token over bare, 5 ms a step, c=256", cpu_ratio("paced 256"), 1.8, False, 4.5),
    Goal("f", "idle, Redis included: share of a core", probe("idle_cpu_percent"), 1, False, 5, "%"),
    Goal("f", "idle: memory of three processes", probe("idle_mb"), 130, False, 325, "MB"),
    Goal("f", "cold start to the first answer", probe("cold_start_s"), 1, False, 5, "s"),
    Goal("g", "memory per open stream, 1,000 held", probe("kb_per_stream"), 32, False, unit="kB"),
    Goal("g", "more Redis connections at 1,000 streams than idle", probe("more_connections"), 0, False, unit=""),
    Goal("h", "embedded, stream, no compute, c=32, to bare", ratio("stream 32", "embedded", "bare"), 0.4, True, 0.16),
)
