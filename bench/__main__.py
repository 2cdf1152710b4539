"""`python -m bench`: Penstock against a bare ASGI app and against its own naive form, interleaved, in rounds.

`make bench` runs it whole, `make bench-ci` the reduced form with its gates; `make help` says how long they take.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench import readme
from bench.cells import CELLS, GOALS
from bench.measure import DISTURBED, Times, measure_round
from bench.readme import README
from bench.report import (
    JOURNAL,
    PAGE,
    RESULTS,
    about,
    foreign_cores,
    judge,
    newest,
    python_command,
    render_journal,
    render_loadgen,
    render_page,
    save,
    table,
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of short measurements; nothing is written")
    parser.add_argument("--ci", action="store_true", help="few cells, two rounds, at most two minutes; wide gates")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--loadgen", help="another load generator in place of `penstock bench`, see bench/loadgen.py")
    parser.add_argument("--only", default="", help="only cells whose name begins so")
    parser.add_argument("--out", type=Path, help="where the results go; default bench/results/<date>.json")
    parser.add_argument("--docs", action="store_true", help="measure nothing: write the pages from the newest results")
    asked = parser.parse_args(arguments)
    if asked.docs:
        write_pages(json.loads(newest().read_text(encoding="utf-8")))
        return 0
    is_short = asked.quick or asked.ci
    times = Times(1.0, 0.5, 2.0) if asked.ci else Times(1.5, 0.7, 2.0) if is_short else Times(3.0, 1.0, 5.0)
    num_rounds = asked.rounds or (2 if asked.ci else 1 if asked.quick else 3)
    cells = [cell for cell in CELLS if cell.name.startswith(asked.only) and (cell.is_in_ci or not asked.ci)]
    if not cells:
        parser.error(f"no cell begins with {asked.only!r}; there are {', '.join(cell.name for cell in CELLS)}")
    command = python_command([one.replace(asked.loadgen, "PATH") if asked.loadgen else one for one in arguments])
    found: dict[str, Any] = {"about": about(command, times, num_rounds), "rounds": [], "goals": []}
    begun_at = time.monotonic()
    for number in range(num_rounds):
        print(f"round {number + 1} of {num_rounds}", flush=True)
        seen = measure_round(
            cells,
            times,
            number,
            lambda line: print(line, flush=True),
            are_held=not (asked.ci or asked.only or asked.loadgen),
            generator=asked.loadgen,
        )
        found["rounds"].append(seen)
    if asked.loadgen:  # the probes do not depend on the load generator
        found["goals"] = judge(found["rounds"], [goal for goal in GOALS if goal.row in "abcdeh"])
    else:
        found["goals"] = judge(found["rounds"])
    print(f"\n{table(found['goals'])}\nin {time.monotonic() - begun_at:.0f} s")
    if (others := foreign_cores(found["rounds"])) > DISTURBED:
        print(f"Other programs used {others:.1f} cores meanwhile: these figures say little.")
    is_whole = not is_short and not asked.only
    if is_whole or asked.out:
        path = asked.out or RESULTS / f"{'loadgen-' if asked.loadgen else ''}{found['about']['date']}.json"
        save(found, path)
        print(f"wrote {os.path.relpath(path)}")
    if is_whole and not asked.out:
        if asked.loadgen:
            JOURNAL.write_text(render_loadgen(found), encoding="utf-8")
        else:
            write_pages(found)
        print(f"wrote {os.path.relpath(JOURNAL)}")
    return gates(found["goals"]) if asked.ci else 0


def write_pages(found: dict[str, Any]) -> None:
    """Write the tables of all goals, the summary for users, and the figures of README.md."""
    JOURNAL.write_text(render_journal(found, CELLS), encoding="utf-8")
    PAGE.write_text(render_page(found), encoding="utf-8")
    README.write_text(readme.render(), encoding="utf-8")


def gates(goals: list[dict[str, Any]]) -> int:
    """CI's verdict: only ratios that are far off, so that a slow or busy machine fails nothing."""
    gated = [goal for goal in goals if goal["gate"] is not None]
    missed = [goal for goal in gated if not goal["is_through_gate"]]
    for goal in missed:
        print(f"FAILED {goal['row']}: {goal['says']}: {goal['median']} {goal['unit']}, the gate is {goal['gate']}")
    print(f"{len(gated) - len(missed)} passed, {len(missed)} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
