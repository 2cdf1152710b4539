"""`python -m tests.chaos`: break a real Penstock on purpose, and check every token and request.

    python -m tests.chaos --list
    python -m tests.chaos --scenario kill_workers --seed 7 --seconds 20 --json out.json
    python -m tests.chaos --all --report bench/results/chaos

Exit status 1 when an invariant broke: then the seed, and the directory with all logs, are named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.chaos import clients, lost, mixed, refusals, report, stores, workers
from tests.chaos.registry import SCENARIOS, Scenario
from tests.chaos.run import Result, Run, Skip, told

# Which register their scenarios when they are imported; this is the order to run them in.
_ORDER = [module.__name__ for module in (workers, stores, lost, refusals, clients, mixed)]

BEYOND_S = 150.0
SLACK = 3.0


def main() -> int:
    options = _options()
    scenarios = dict(sorted(SCENARIOS.items(), key=lambda item: _ORDER.index(item[1].play.__module__)))
    if options.list:
        for one in scenarios.values():
            _say(f"{one.name:18} {one.seconds:4g} s  {one.says}")
        return 0
    if options.quote:
        source, page = map(Path, options.quote)
        page.write_text(report.quote(json.loads(source.read_text(encoding="utf-8")), page), encoding="utf-8")
        return 0
    names = [*(options.scenario or []), *(scenarios if options.all else [])]
    if not names or not set(names) <= set(scenarios):
        _say("Name a --scenario of --list, or say --all.")
        return 2
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    chosen = [scenarios[name] for name in names]
    keep = Path(options.keep or tempfile.mkdtemp(prefix="penstock-chaos-"))
    began = time.monotonic()
    results = [_perform(one, seed, _seconds(one, options, len(chosen)), options, keep) for one in chosen]
    command = "python -m tests.chaos " + " ".join(_without_paths(sys.argv[1:]))
    made = report.build(results, options.made_by or command, seed, time.monotonic() - began)
    if options.report:
        report.write(made, Path(options.report))
    if options.json:
        Path(options.json).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _say("\n" + report.table(made))
    for result in results:
        for problem in result.problems:
            _say(f"{result.name}: {problem}")
    if made["failed"]:
        _say(f"seed {seed}; logs in {keep}")
    _say(
        f"{made['passed']} passed, {made['failed']} failed"
        + (f", {made['skipped']} skipped" if made["skipped"] else "")
    )
    return 1 if made["failed"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Break it on purpose, check every token and request."
    )
    parser.add_argument("--scenario", action="append", metavar="NAME")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seed", type=int, help="default: a new one, printed")
    parser.add_argument("--seconds", type=float, help="of faults for each scenario")
    parser.add_argument("--minutes", type=float, help="of faults for all scenarios together; a long run")
    parser.add_argument("--slack", type=float, default=SLACK, help="bounds are this many times the target")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--report", metavar="STEM", help="write STEM.json and STEM.md")
    parser.add_argument("--made-by", metavar="COMMAND", help="what the report says made it")
    parser.add_argument("--quote", nargs=2, metavar=("JSON", "PAGE"), help="put a report's table into a page")
    parser.add_argument("--keep-all", action="store_true", help="logs of what held as well")
    parser.add_argument("--keep", metavar="DIRECTORY", help="where logs of what broke go")
    return parser.parse_args()


def _seconds(one: Scenario, options: argparse.Namespace, num: int) -> float:
    if options.seconds is not None:
        return float(options.seconds)
    return one.seconds if options.minutes is None else max(one.seconds, options.minutes * 60 / num)


def _perform(one: Scenario, seed: int, seconds: float, options: argparse.Namespace, keep: Path) -> Result:
    _say(f"── {one.name}: seed {seed}, {seconds:g} s of faults")
    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_play(one, seed, seconds, options, keep))
    took_s = time.monotonic() - began
    for problem in result.problems:
        _say(f"   BROKEN  {problem}")
    verdict = f"skipped: {result.skipped}" if result.skipped else "broken" if result.problems else "held"
    pause = "/".join(f"{value:.0f}" for value in result.pause_ms.values())
    _say(
        f"   {verdict} in {took_s:.1f} s: {sum(result.injected.values())} faults, {result.requests} requests, "
        f"{result.interrupted} interrupted, pause p50/p99/max {pause or '–'} ms, {result.notes or ''}"
    )
    return result


async def _play(one: Scenario, seed: int, seconds: float, options: argparse.Namespace, keep: Path) -> Result:
    is_long = options.minutes is not None
    with tempfile.TemporaryDirectory(prefix="penstock-chaos-run-") as name:
        run = Run(Path(name), seed, seconds, is_long, options.slack)
        skipped = ""
        try:
            async with asyncio.timeout(seconds + BEYOND_S):
                await one.play(run)
                await run.finish(one.target)
        except Skip as skip:
            skipped = str(skip)
        except Exception as error:  # whatever it is, it is this scenario's failure, and the others go on
            run.problems.append(told(error))
        try:
            try:
                await run.load.stop(0.1)
            except Exception as error:
                run.problems.append(told(error))
            result = run.result(one.name, seed, one.target)
            result.skipped = skipped
            if result.problems or options.keep_all:
                run.plant.keep(keep / one.name)
                state = json.dumps(run.story(), indent=1, ensure_ascii=False)
                (keep / one.name / "requests.json").write_text(state, encoding="utf-8")
        finally:
            await run.plant.close()
    return result


def _without_paths(words: list[str]) -> list[str]:
    """The command as anybody may type it."""
    shown: list[str] = []
    skip = False
    for word in words:
        if skip or word in ("--keep", "--made-by"):
            skip = not skip
            continue
        shown.append(Path(word).name if word.startswith("/") else word)
    return shown


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
