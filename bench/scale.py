"""What Penstock costs as it grows, on a real Redis: `python -m bench.scale`, some four minutes.

CPU a token and memory a stream with 1 to 5,000 streams held open; 1 to 4 gateway processes and workers; the cost of a
request. Writes bench/results/scale-<date>.json, the section and the picture of docs/performance.md, and the costs that
`penstock plan` computes with. Every figure is of one role, its child processes included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Times
from bench.probe import Look, drained, gateway_counts, look, redis_connections, settle
from bench.report import PAGE, RESULTS, about, between, save
from bench.scale_report import BEGIN, END, PICTURE, costs_of, draw, render, table_of
from bench.stacks import GATEWAY, WORKER, Program, Stack
from penstock.planner.costs import PACKAGED
from tests.support.servers import free_port, start_server

FAST = "fast=mock:step_ms=0"
CONCURRENCY, TOKENS = 256, 64  # of the load on several processes
REQUESTS = ("--model=short", "--concurrency=32", "--output-tokens=1")
TOKENS_PER_S = 15_000  # what all streams together are paced to, where a step of 5 ms would be more


@dataclass(frozen=True)
class Form:
    """How much is measured: streams held open, gateways × workers, and for how long. `drain_s`: how long Redis may
    take to forget what was before.
    """

    streams: tuple[int, ...]
    grid: tuple[tuple[int, int], ...]
    times: Times
    drain_s: float


FULL = Form((1, 10, 100, 1000, 5000), ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4)), Times(4.0, 1.0, 0.0), 20.0)
QUICK = Form((100, 1000), ((2, 2),), Times(1.5, 0.5, 0.0), 20.0)


def step_ms_of(streams: int) -> float:
    return max(5.0, streams / (TOKENS_PER_S / 1000))


# ── the system ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def running(gateways: int, workers: int, models: Sequence[str]) -> Iterator[Stack]:
    """So many gateway processes and workers on one Redis, all of them up."""
    port, redis = free_port(), start_server()
    store = ["--redis-url", redis.url]
    flags = [word for model in models for word in ("--model", model)]
    programs = [Program("penstock", "gateway", f"--port={port}", f"--processes={gateways}", *store, *GATEWAY)]
    programs += [Program("penstock", "worker", "--metrics-port=0", *store, *flags, *WORKER) for _ in range(workers)]
    stack = Stack("penstock", port, programs, redis)
    try:
        stack.wait_ready()
        settle(stack, gateways, workers)
        yield stack
    finally:
        stack.stop()


def _command(stack: Stack) -> list[str]:
    return [sys.executable, "-m", "penstock", "bench", "--json", "--url", stack.url, "--timeout=60"]


# ── streams held open ────────────────────────────────────────────────────────────────────────────────────────────────


def held(stack: Stack, streams: int, form: Form, idle: Look) -> dict[str, Any]:
    """So many paced streams open from the first look to the last, none begun and none ended between them."""
    step_ms, wait_s = step_ms_of(streams), 2.0 + streams / 1000
    num_tokens = math.ceil((wait_s + form.times.measure_s + 1.0) * 1000 / step_ms)
    is_clean = drained(stack, form.drain_s)
    empty = look(stack, is_last=False)
    with _holding(stack, streams, num_tokens) as holder:
        _wait_running(stack, streams, wait_s + 15.0)
        time.sleep(0.5)  # the last ones' beginning is over
        first = look(stack, is_last=False, generator_pid=holder.pid)
        time.sleep(form.times.measure_s)
        last = look(stack, is_last=True, generator_pid=holder.pid)
    if min(first.num_open, last.num_open) != streams:
        raise RuntimeError(f"{streams} streams were to be open, and {first.num_open}, then {last.num_open} were")
    tokens = last.num_tokens - first.num_tokens
    found = _used(first, last, tokens)
    grown = {role: (last.rss_kb[role] - idle.rss_kb[role]) / streams for role in idle.rss_kb}
    return {
        "streams": streams,
        "step_ms": round(step_ms, 3),
        "tokens_each": round((last.num_tokens - empty.num_tokens) / streams, 1),
        "tokens_per_s": round(tokens / (last.at - first.at), 1),
        **found,
        "cores": {role: round(value / (last.at - first.at), 4) for role, value in last.used_s(first).items()},
        "kb_per_stream": {role: round(value, 2) for role, value in grown.items()},
        **_redis_costs(empty, first, last, streams, is_clean=is_clean),
    }


def _redis_costs(empty: Look, first: Look, last: Look, streams: int, *, is_clean: bool) -> dict[str, float | None]:
    """Network and memory of Redis; memory only when nothing of earlier was forgotten meanwhile.

    A log grows by nodes of some dozens of tokens, and its first one is allocated whole. So the cost of a token is what
    many tokens of one stream add between the looks; that of a request is what then remains of a stream.
    """
    tokens = last.num_tokens - first.num_tokens

    def grown(name: str, since: Look, by: int) -> float:
        return round(float(last.redis[name] - since.redis[name]) / max(1, by), 1)

    return {
        "redis_bytes_per_token": grown("used_memory", first, tokens) if is_clean else None,
        "redis_bytes_per_stream": grown("used_memory", empty, streams) if is_clean else None,
        "redis_in_bytes_per_token": grown("total_net_input_bytes", first, tokens),
        "redis_out_bytes_per_token": grown("total_net_output_bytes", first, tokens),
    }


def _used(first: Look, last: Look, tokens: int) -> dict[str, Any]:
    return {
        "us_per_token": {role: round(value * 1e6 / max(1, tokens), 3) for role, value in last.used_s(first).items()},
        "foreign_cores": last.foreign_cores(first),
    }


@contextlib.contextmanager
def _holding(stack: Stack, streams: int, num_tokens: int) -> Iterator[subprocess.Popen[str]]:
    """The load, and at the end its verdict: every answer was right. Raises `RuntimeError` when one was not."""
    flags = [f"--model=s{streams}", f"--requests={streams}", f"--concurrency={streams}", "--warmup=0"]
    command = [*_command(stack), *flags, f"--output-tokens={num_tokens}"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield holder
        output, errors = holder.communicate(timeout=60)
    finally:
        if holder.poll() is None:
            holder.kill()
            holder.communicate()
    said = json.loads(output) if output else {"ok": 0, "errors": errors}
    if said["ok"] != streams:
        raise RuntimeError(f"of {streams} streams {said['ok']} were right: {said['errors']}")


def _wait_running(stack: Stack, streams: int, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (num := gateway_counts(stack)["running"]) < streams:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{streams} streams were to be open, and {num} are")
        time.sleep(0.1)


# ── load on several processes, and requests ──────────────────────────────────────────────────────────────────────────


def answered(stack: Stack, times: Times, *flags: str) -> dict[str, Any]:
    """A closed loop of answers; costs over the whole run, its beginning included."""
    first, children = look(stack, is_last=False), _children_s()
    command = [*_command(stack), f"--duration={times.measure_s}", f"--warmup={times.warmup_s}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last, generator_s = look(stack, is_last=True), _children_s() - children
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(done.stderr)
    said = json.loads(done.stdout)
    found = _used(first, last, said["tokens_with_warmup"])
    found["foreign_cores"] = round(max(0.0, found["foreign_cores"] - generator_s / (last.at - first.at)), 3)
    return {
        "tokens_per_s": said["tokens_per_s"],
        "requests_per_s": said["requests_per_s"],
        "failed": said["failed"],
        "generator_cpu": said["generator_cpu"],
        **found,
    }


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def client_bytes(stack: Stack) -> float:
    """Bytes of the body of a stream for each of its tokens, all else taken away."""
    sizes = [_size_of_answer(stack, num) for num in (1, 257)]
    return (sizes[1] - sizes[0]) / 256


def _size_of_answer(stack: Stack, num_tokens: int) -> int:
    body = json.dumps({"prompt": "Hello", "max_tokens": num_tokens, "stream": True, "model": "short"}).encode()
    request = urllib.request.Request(f"{stack.url}/v1/generate", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30.0) as answer:
        return len(answer.read())


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(form: Form) -> dict[str, Any]:
    """Everything of the form; a line each as it comes."""
    found: dict[str, Any] = {"held": [], "grid": []}
    models = ["short=mock:step_ms=5", *(f"s{num}=mock:step_ms={step_ms_of(num):.6g}" for num in form.streams)]
    with running(1, 1, models) as stack:
        # What the first requests load and allocate is not what streams add.
        answered(stack, Times(0.5, 0.0, 0.0), "--model=short", "--concurrency=8", "--output-tokens=1")
        found["client_bytes_per_token"] = round(client_bytes(stack), 1)
        found["redis_connections"] = redis_connections(stack)
        idle = look(stack, is_last=False)
        found["idle_mb"] = {role: round(value / 1024, 1) for role, value in idle.rss_kb.items()}
        for streams in form.streams:
            found["held"].append(held(stack, streams, form, idle))
            _say(f"{streams} streams", found["held"][-1])
        found["requests"] = answered(stack, form.times, *REQUESTS)
        _say("requests of one token", found["requests"])
    for gateways, workers in form.grid:
        with running(gateways, workers, [FAST]) as stack:
            flags = [f"--concurrency={CONCURRENCY}", f"--output-tokens={TOKENS}"]
            cell = {"gateways": gateways, "workers": workers, **answered(stack, form.times, *flags)}
        found["grid"].append(cell)
        _say(f"{gateways} × {workers}", cell)
    return found


def _say(name: str, cell: dict[str, Any]) -> None:
    each = "  ".join(f"{role} {value:.1f}" for role, value in cell["us_per_token"].items())
    wrong = f"  {cell['failed']} FAILED" if cell.get("failed") else ""
    print(f"  {name:22} {cell['tokens_per_s']:>10,.0f} tokens/s   us a token: {each}{wrong}", flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small cells, in under a minute; nothing is written")
    parser.add_argument("--costs", type=Path, help="write only the costs, here: for `penstock plan --costs`")
    asked = parser.parse_args(arguments)
    form, begun_at = QUICK if asked.quick else FULL, time.monotonic()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * max(form.streams) + 1024  # a gateway has a connection for each stream; children inherit the limit
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    shown = " ".join(["python -m bench.scale", *(["--quick"] if asked.quick else [])])
    found: dict[str, Any] = {"about": about(shown, form.times, 1), **measure(form)}
    print(f"\n{table_of(found)}\nin {time.monotonic() - begun_at:.0f} s")
    if asked.costs:
        save(costs_of(found), asked.costs)
    elif not asked.quick:
        save(found, RESULTS / f"scale-{found['about']['date']}.json")
        save(costs_of(found), PACKAGED)
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(draw(found), encoding="utf-8")
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, render(found)), encoding="utf-8")
        print(f"wrote {os.path.relpath(PAGE)}, its picture, the results and {os.path.relpath(PACKAGED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
