"""Runs the cells: rounds of fresh processes, and within a round every cell on all its systems one after the other, so
that what slows the machine down for a while slows all of them down.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import loadgen
from bench.cells import BURSTS, Cell
from bench.stacks import TICKS, Stack, launch, running

NUM_HELD = 1000
DISTURBED = 0.25  # cores that others use, above which a figure says little

Say = Callable[[str], None]


@dataclass(frozen=True)
class Times:
    """Seconds: of each measurement, of the load before it, of the look at idle processes."""

    measure_s: float
    warmup_s: float
    idle_s: float

    def stretched(self, factor: float) -> Times:
        return Times(self.measure_s * factor, self.warmup_s * factor, self.idle_s)


def load(stack: Stack, times: Times, *flags: str) -> dict[str, Any]:
    """`penstock bench` on a stack; its JSON, and the CPU seconds that the stack used meanwhile."""
    return _watched(stack, lambda: _ours(stack, times, *flags))


def _ours(stack: Stack, times: Times, *flags: str) -> dict[str, Any]:
    span = (
        ["--warmup=0"]
        if "--no-preconnect" in flags
        else [f"--duration={times.measure_s}", f"--warmup={times.warmup_s}"]
    )
    done = subprocess.run(
        [*_command(stack), *span, *flags],
        capture_output=True,
        text=True,
        timeout=times.measure_s + times.warmup_s + 120,
    )
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{stack.name}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    found.pop("timeline")
    return found


def _burst(stack: Stack, times: Times, cell: Cell) -> dict[str, Any]:
    """`BURSTS` bursts one after another: the run whose last answer came at the median time, and the CPU of all."""
    flags = ("--no-preconnect", f"--requests={cell.concurrency}", f"--concurrency={cell.concurrency}")
    runs = [load(stack, times, *flags, f"--output-tokens={cell.tokens}") for _ in range(BURSTS)]
    runs.sort(key=lambda run: float(run["e2e_ms"]["max"]))
    failed = sum(run["failed"] for run in runs)
    return {**runs[BURSTS // 2], "failed": failed, "bursts_ms": [run["e2e_ms"]["max"] for run in runs]}


def _theirs(path: str, stack: Stack, times: Times, cell: Cell) -> dict[str, Any]:
    return loadgen.run(
        path,
        stack.url,
        concurrency=cell.concurrency,
        tokens=cell.tokens,
        is_stream=cell.is_stream,
        measure_s=times.measure_s,
        warmup_s=times.warmup_s,
        rate=cell.rate,
    )


def _watched(stack: Stack, drive: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `drive` says, and the CPU seconds that the stack and others used meanwhile."""
    before, others, begun_at = stack.cpu_s(), _others_cpu_s(), time.monotonic()
    found = drive()
    used = stack.cpu_s() - before
    foreign = (_others_cpu_s() - others - used) / (time.monotonic() - begun_at)
    return {**found, "cpu_s": used, "foreign_cores": round(max(0.0, foreign), 3)}


def _others_cpu_s() -> float:
    """CPU seconds of this machine so far that this process and those it waited for did not use."""
    busy = sum(int(value) for at, value in enumerate(Path("/proc/stat").read_text().split()[1:8]) if at not in (3, 4))
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy / TICKS - sum(usage.ru_utime + usage.ru_stime for usage in own)


def _command(stack: Stack) -> list[str]:
    return [sys.executable, "-m", "penstock", "bench", "--json", "--url", stack.url, "--timeout=30"]


def measure_cell(
    cell: Cell, stacks: dict[str, Stack], times: Times, first: int, say: Say, generator: str | None
) -> dict[str, Any]:
    """The cell on each of its systems; `first` says who begins, so that no system always does."""
    found = {}
    names = cell.systems[first % len(cell.systems) :] + cell.systems[: first % len(cell.systems)]
    for name in names:
        own = times.stretched(cell.stretch)
        flags = [f"--concurrency={cell.concurrency}", f"--rate={cell.rate}", f"--output-tokens={cell.tokens}"]
        if cell.is_burst:
            run = _burst(stacks[name], own, cell)
        elif generator:
            run = _watched(stacks[name], partial(_theirs, generator, stacks[name], own, cell))
        else:
            run = load(stacks[name], own, *flags, *([] if cell.is_stream else ["--no-stream"]))
        found[name] = run
        ttft = f", first token {run['ttft_ms']['p50']:.1f} / {run['ttft_ms']['p99']:.1f} ms" if run["ttft_ms"] else ""
        busy = " (generator busy)" if max(run["generator_cpu"]) > 0.85 else ""
        busy += f" (others use {run['foreign_cores']:.1f} cores)" if run["foreign_cores"] > DISTURBED else ""
        ttft += f", last answer after {run['e2e_ms']['max']:.0f} ms" if cell.is_burst else ""
        wrong = f", {run['failed']} FAILED {run['errors']}" if run["failed"] else ""
        speed = f"{run['tokens_per_s']:>10,.0f} tokens/s {run['requests_per_s']:>9,.1f} requests/s"
        say(f"  {cell.name:12} {name:9} {speed}{ttft}{wrong}{busy}")
    return found


def measure_round(
    cells: Sequence[Cell], times: Times, number: int, say: Say, *, are_held: bool, generator: str | None = None
) -> dict[str, Any]:
    """All cells once, and the probes; that of held streams takes ten seconds. `generator`: see `bench/loadgen.py`."""
    found: dict[str, Any] = {"probes": {"penstock": {"cold_start_s": cold_start()}}}
    for step_ms in sorted({cell.step_ms for cell in cells}):
        mine = [cell for cell in cells if cell.step_ms == step_ms]
        names = sorted({name for cell in mine for name in cell.systems})
        with running(names, step_ms) as stacks:
            if step_ms:
                found["probes"]["penstock"].update(idle(stacks["penstock"], times.idle_s))
                if are_held:  # before any load: memory that a load leaves free would be used again
                    found["probes"]["penstock"].update(hold(stacks["penstock"]))
            for cell in mine:
                found[cell.name] = measure_cell(cell, stacks, times, number, say, generator)
    say(f"  probes       penstock  {found['probes']['penstock']}")
    return found


def cold_start() -> float:
    """Seconds from starting gateway and worker (Redis runs) to the first answer."""
    with contextlib.ExitStack() as cleanup:
        stack = launch("penstock", 0.0)
        cleanup.callback(stack.stop)
        stack.wait_ready()
        return round(time.monotonic() - stack.launched_at, 3)


def idle(stack: Stack, seconds: float) -> dict[str, Any]:
    """The cost of a stack without requests, Redis included."""
    before, begun_at = stack.cpu_s(), time.monotonic()
    time.sleep(seconds)
    share = (stack.cpu_s() - before) / (time.monotonic() - begun_at)
    memory = stack.rss_mb()
    return {
        "idle_cpu_percent": round(100 * share, 2),
        "idle_mb": round(sum(memory.values()), 1),
        "idle_mb_each": {name: round(value, 1) for name, value in memory.items()},
        "idle_connections": stack.redis_connections(),
    }


def hold(stack: Stack) -> dict[str, Any]:
    """Memory and Redis connections with `NUM_HELD` streams open at a slow model."""
    load(stack, Times(0.5, 0.0, 0.0), "--model=slow", "--concurrency=8", "--output-tokens=1")
    memory, connections = stack.rss_mb(), stack.redis_connections()
    with _holding(stack):
        deadline = time.monotonic() + 10
        while stack.open_streams() < NUM_HELD:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{NUM_HELD} streams were to be held, and {stack.open_streams()} are")
            time.sleep(0.05)
        time.sleep(1.0)  # into the middle of them
        grown, more = stack.rss_mb(), stack.redis_connections()
    added = {name: (grown[name] - memory[name]) * 1024 / NUM_HELD for name in memory}
    return {
        "kb_per_stream": round(sum(added.values()), 1),
        "kb_per_stream_each": {name: round(value, 1) for name, value in added.items()},
        "connections": more,
        "more_connections": more - connections,
    }


@contextlib.contextmanager
def _holding(stack: Stack) -> Iterator[None]:
    flags = ["--model=slow", f"--requests={NUM_HELD}", f"--concurrency={NUM_HELD}", "--warmup=0", "--output-tokens=32"]
    holder = subprocess.Popen([*_command(stack), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield
        output, errors = holder.communicate(timeout=60)
    finally:
        if holder.poll() is None:
            holder.kill()
            holder.communicate()
    held = json.loads(output) if output else {"ok": 0, "errors": errors}
    if held["ok"] != NUM_HELD:
        raise RuntimeError(f"of {NUM_HELD} streams to be held {held['ok']} were: {held['errors']}")
