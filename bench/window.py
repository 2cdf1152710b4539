"""What closing the batch window early costs and earns: `python -m bench.window`, some three minutes.

Three ways, each on a real Redis: the whole window; closing it after a quarter of it without an arrival (what Penstock
does); closing it at once where the mean gap between arrivals predicts no arrival. The last lives only here.
Writes bench/results/window-<date>.json and its table in bench/README.md.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from bench.measure import Times
from bench.report import JOURNAL
from bench.stacks import GATEWAY, Program, Stack
from bench.study import Study
from penstock.cli import main as penstock
from penstock.worker import tenure
from penstock.worker.batcher import Batcher
from tests.support.servers import free_port, start_server

BEGIN = "<!-- window: written by `python -m bench.window` -->\n"
END = "<!-- /window -->\n"

WAYS = ("whole", "quiet", "rate")
GAP_WEIGHT, PATIENCE = 1 / 8, 3.0


@dataclass(frozen=True)
class Cell:
    """One load. `places`: batches that may run at once."""

    name: str
    model: str
    places: int
    flags: tuple[str, ...]


TOKENS = 64


def _closed(concurrency: int, *more: str) -> tuple[str, ...]:
    return (f"--concurrency={concurrency}", f"--output-tokens={TOKENS}", *more)


PACED = "mock=mock:step_ms=5"
# As an engine behaves: a step of 20 ms, longer with each sequence in it, and few batches at once.
ENGINE = "mock=mock:step_ms=20,step_ms_per_seq=0.2"
CELLS = (
    Cell("5 ms a step, c=1", PACED, 64, _closed(1)),
    Cell("5 ms a step, c=32", PACED, 64, _closed(32)),
    Cell("5 ms a step, c=256", PACED, 64, _closed(256)),
    Cell("5 ms a step, 50 requests/s", PACED, 64, ("--rate=50", f"--output-tokens={TOKENS}")),
    Cell("5 ms a step, 400 requests/s", PACED, 64, ("--rate=400", f"--output-tokens={TOKENS}")),
    Cell("no compute, c=32, whole answers", "mock=mock", 64, _closed(32, "--no-stream")),
    Cell("like an engine, 4 places, c=32", ENGINE, 4, _closed(32)),
    Cell("like an engine, 4 places, c=128", ENGINE, 4, _closed(128)),
)


class RateBatcher(Batcher):
    """All or nothing: while the mean gap between arrivals is longer than the window, a claim does not wait.

    A gap counts as two windows at most, so that after an idle hour a burst is known for one within a few claims.
    """

    _last_at, _gap_s = -inf, inf

    def quiet_at(self, model: str, window_s: float, now: float) -> float:
        gap_s = min(now - self._last_at, 2 * window_s)
        if gap_s > 0:  # claims of one instant are one arrival
            self._gap_s = 2 * window_s if self._gap_s == inf else self._gap_s + (gap_s - self._gap_s) * GAP_WEIGHT
            self._last_at = now
        return now + PATIENCE * self._gap_s if self._gap_s < window_s else now


def _launch(cell: Cell, way: str) -> tuple[Stack, int]:
    """A gateway, a worker that batches in this way, and the port of the worker's metrics."""
    port, metrics_port, redis = free_port(), free_port(), start_server()
    store = ["--redis-url", redis.url]
    flags = ["--model", cell.model, "--max-batches", str(cell.places), "--max-batch-size", "256"]
    flags += ["--no-supervised", f"--metrics-port={metrics_port}", *(["--no-batch-window-early"] * (way == "whole"))]
    worker = ["bench.window", "--worker"] if way == "rate" else ["penstock"]
    programs = [
        Program("penstock", "gateway", f"--port={port}", *store, *GATEWAY),
        Program(*worker, "worker", *store, *flags),
    ]
    return Stack("penstock", port, programs, redis), metrics_port


def _mean_batch(metrics_port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5.0) as answer:
        lines = answer.read().decode().splitlines()
    total, num = (
        sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"penstock_batch_size_{part}"))
        for part in ("sum", "count")
    )
    return round(total / max(1.0, num), 1)


def measure(cell: Cell, way: str, times: Times) -> dict[str, Any]:
    stack, metrics_port = _launch(cell, way)
    try:
        stack.wait_ready()
        command = [sys.executable, "-m", "penstock", "bench", "--json", "--url", stack.url, *cell.flags]
        command += [f"--duration={times.measure_s:g}", f"--warmup={times.warmup_s:g}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{cell.name}, {way}: {done.stdout or done.stderr}")
        found = json.loads(done.stdout)
        first = found["ttft_ms"] or found["e2e_ms"]  # a whole answer has no first token but all of it
        return {
            "first_p50_ms": first["p50"],
            "first_p99_ms": first["p99"],
            "tokens_per_s": found["tokens_per_s"] if found["ttft_ms"] else found["requests_per_s"] * TOKENS,
            "mean_batch": _mean_batch(metrics_port),
        }
    finally:
        stack.stop()


def table(rounds: Sequence[dict[str, dict[str, dict[str, float]]]]) -> str:
    """Medians of the rounds, as Markdown."""
    rows = [
        "| load | first token p50 / p99, ms: whole window | quiet quarter | by rate "
        "| tokens/s: whole | quiet | by rate | mean batch: whole | quiet | by rate |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in CELLS:
        if cell.name not in rounds[0]:
            continue
        of = {
            way: {
                key: statistics.median(seen[cell.name][way][key] for seen in rounds)
                for key in rounds[0][cell.name][way]
            }
            for way in WAYS
        }
        firsts = " | ".join(f"{of[way]['first_p50_ms']:.1f} / {of[way]['first_p99_ms']:.1f}" for way in WAYS)
        speeds = " | ".join(f"{of[way]['tokens_per_s']:,.0f}" for way in WAYS)
        sizes = " | ".join(f"{of[way]['mean_batch']:.1f}" for way in WAYS)
        rows.append(f"| {cell.name} | {firsts} | {speeds} | {sizes} |")
    return "\n".join(rows) + "\n"


STUDY = Study(
    module="bench.window",
    about=str(__doc__),
    cells=CELLS,
    ways=WAYS,
    measure=measure,
    table=table,
    page=JOURNAL,
    begin=BEGIN,
    end=END,
    times=Times(2.5, 1.0, 0.0),
)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--worker"]:
        tenure.Batcher = RateBatcher  # type: ignore[misc]  # a worker that batches as is studied here
        sys.argv = ["penstock", *arguments[1:]]
        penstock()
        return 0
    return STUDY.run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
