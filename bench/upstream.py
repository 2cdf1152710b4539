"""What Penstock costs before an engine: `python -m bench.upstream`, some three minutes.

A bare engine's server, a token every 10 ms or as fast as it can, asked directly, through Penstock in one process, and
through a gateway and a worker on a real Redis; each by the same load generator over the same API. Writes
bench/results/upstream-<date>.json and its table in docs/backends.md.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.measure import Times
from bench.report import ROOT
from bench.stacks import GATEWAY, WORKER, Program, Stack
from bench.study import Study
from tests.support.servers import free_port, start_server

BEGIN = "<!-- upstream: written by `python -m bench.upstream` -->\n"
END = "<!-- /upstream -->\n"
PAGE = ROOT / "docs" / "backends.md"

WAYS = ("directly", "embedded", "on Redis")
TOKENS = 64


@dataclass(frozen=True)
class Cell:
    name: str
    step_ms: float
    concurrency: int


CELLS = (
    Cell("10 ms a token, 1 stream", 10, 1),
    Cell("10 ms a token, 32 streams", 10, 32),
    Cell("10 ms a token, 256 streams", 10, 256),
    Cell("no compute, 32 streams", 0, 32),
)


def launch(cell: Cell, way: str) -> Stack:
    engine_port, port = free_port(), free_port()
    engine = Program("bench.baselines.engine", f"--port={engine_port}", f"--step-ms={cell.step_ms:g}")
    if way == "directly":
        return Stack("engine", engine_port, [engine], None)
    model = ["--model", f"m=openai:url=http://127.0.0.1:{engine_port}"]
    if way == "embedded":
        own = [Program("penstock", "serve", f"--port={port}", *model, *WORKER, *GATEWAY)]
        return Stack("penstock", port, [*own, engine], None)
    redis = start_server()
    store = ["--redis-url", redis.url]
    own = [
        Program("penstock", "gateway", f"--port={port}", *store, *GATEWAY),
        Program("penstock", "worker", "--no-supervised", "--metrics-port=0", *store, *model, *WORKER),
    ]
    return Stack("penstock", port, [*own, engine], redis)


def measure(cell: Cell, way: str, times: Times) -> dict[str, float]:
    stack = launch(cell, way)
    try:
        stack.wait_ready()
        command = [sys.executable, "-m", "penstock", "bench", "--json", "--api=chat", "--url", stack.url]
        command += [f"--concurrency={cell.concurrency}", f"--output-tokens={TOKENS}", "--input-tokens=32"]
        command += [f"--duration={times.measure_s:g}", f"--warmup={times.warmup_s:g}"]
        if way == "directly":
            command += ["--model=m"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{cell.name}, {way}: {done.stdout or done.stderr}")
        found = json.loads(done.stdout)
        first = found["ttft_ms"]
        return {"p50_ms": first["p50"], "p99_ms": first["p99"], "tokens_per_s": found["tokens_per_s"]}
    finally:
        stack.stop()


def table(rounds: Sequence[dict[str, dict[str, dict[str, float]]]]) -> str:
    """Medians of the rounds, as Markdown; what is added to the first token is against the same round's direct way."""
    rows = [
        "| load | tokens/s: directly | embedded | on Redis | added to the first token, p50 / p99 ms: embedded "
        "| on Redis |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for cell in CELLS:
        speeds = " | ".join(
            f"{statistics.median(seen[cell.name][way]['tokens_per_s'] for seen in rounds):,.0f}" for way in WAYS
        )
        added = []
        for way in WAYS[1:]:
            parts = [
                statistics.median(seen[cell.name][way][key] - seen[cell.name]["directly"][key] for seen in rounds)
                for key in ("p50_ms", "p99_ms")
            ]
            added.append(" / ".join(f"{part:.1f}" for part in parts))
        rows.append(f"| {cell.name} | {speeds} | {' | '.join(added)} |")
    return "\n".join(rows) + "\n"


STUDY = Study(
    module="bench.upstream",
    about=str(__doc__),
    cells=CELLS,
    ways=WAYS,
    measure=measure,
    table=table,
    page=PAGE,
    begin=BEGIN,
    end=END,
    times=Times(3.0, 1.0, 0.0),
    note=f", which hold the engine's server and the load as well; {TOKENS} tokens an answer",
)


def main(arguments: list[str]) -> int:
    return STUDY.run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
