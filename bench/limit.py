"""Where the limit of `penstock bench` itself lies: its CPU time a token and an answer, against the bare server.

    python -m bench.limit [--loadgen PATH]

With `--loadgen` beside another load generator in turn, see `bench/loadgen.py`. Writes
bench/results/limit-<date>.json and the section of `bench/README.md`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from bench import loadgen
from bench.measure import Times, load
from bench.report import JOURNAL, LIMIT_BEGIN, LIMIT_END, RESULTS, about, between, python_command, save
from bench.stacks import Stack, running

TOKENS = 64
TIMES = Times(3.0, 1.0, 0.0)
FORMS = (
    ("streams, no compute, c=256", 0.0, 256, True),
    ("streams, 5 ms a step, c=256", 5.0, 256, True),
    ("whole answers, c=32", 0.0, 32, False),
)
Measured = dict[str, float]


def ours(stack: Stack, concurrency: int, is_stream: bool) -> Measured:
    flags = [f"--concurrency={concurrency}", f"--output-tokens={TOKENS}", *([] if is_stream else ["--no-stream"])]
    run = load(stack, TIMES, *flags)
    return _measured(run["requests_per_s"], max(run["generator_cpu"]), run["failed"])


def theirs(path: str, stack: Stack, concurrency: int, is_stream: bool) -> Measured:
    run = loadgen.run(
        path,
        stack.url,
        concurrency=concurrency,
        tokens=TOKENS,
        is_stream=is_stream,
        measure_s=TIMES.measure_s,
        warmup_s=TIMES.warmup_s,
    )
    return _measured(run["requests_per_s"], run["generator_cpu"][0], run["failed"])


def _measured(requests_per_s: float, cpu: float, num_failed: int) -> Measured:
    return {"requests_per_s": requests_per_s, "cpu": cpu, "per_core_s": requests_per_s / cpu, "failed": num_failed}


def measure(rounds: int, path: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"form": form, "is_stream": is_stream, "ours": [], "theirs": []} for form, _, _, is_stream in FORMS
    ]
    for _ in range(rounds):
        for into, (form, step_ms, concurrency, is_stream) in zip(found, FORMS, strict=True):
            with running(["bare"], step_ms) as stacks:
                into["ours"].append(ours(stacks["bare"], concurrency, is_stream))
                if path:
                    into["theirs"].append(theirs(path, stacks["bare"], concurrency, is_stream))
            print(f"  {form:30} {into['ours'][-1]}", into["theirs"][-1:], flush=True)
    return found


def render(found: dict[str, Any]) -> str:
    """What the page says of the generator."""
    rows = ["| | one process can at most | of a C load generator's |", "|---|--:|--:|"]
    for one in found["forms"]:
        own = statistics.median(run["per_core_s"] for run in one["ours"])
        other = [run["per_core_s"] for run in one["theirs"]]
        share = f"{own / statistics.median(other):.0%}" if other else "–"
        most = f"{own * TOKENS / 1000:,.0f}k tokens/s" if one["is_stream"] else f"{own / 1000:,.0f}k answers/s"
        rows.append(f"| {one['form']} | {most} | {share} |")
    at = found["about"]
    return (
        f"\n{at['date']}, `{at['command']}`, {at['rounds']} rounds against the bare server above, "
        f"on {at['cores']} cores of {at['cpu']}:\n\n" + "\n".join(rows) + "\n\n"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.limit", description=__doc__)
    parser.add_argument("--loadgen", help="another load generator to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    shown = python_command(["--loadgen PATH"] if asked.loadgen else []).replace("bench", "bench.limit")
    found: dict[str, Any] = {"about": about(shown, TIMES, asked.rounds)}
    found["forms"] = measure(asked.rounds, asked.loadgen)
    save(found, RESULTS / f"limit-{found['about']['date']}.json")
    page = between(JOURNAL.read_text(encoding="utf-8"), LIMIT_BEGIN, LIMIT_END, render(found))
    JOURNAL.write_text(page, encoding="utf-8")
    print(render(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
