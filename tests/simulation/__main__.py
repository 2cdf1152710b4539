"""`python -m tests.simulation --seeds 2000`, or `--seed 1234 -v` to replay one and see what happens in it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.plan import draw
from tests.simulation.run import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failing seed")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what happened")
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    started, calm, failed, num, ends = time.perf_counter(), [0.0], [], 0, Counter[str]()
    for seed in seeds:
        num += 1
        outcome = simulate(seed)
        calm.append(outcome.calm_s)
        ends.update(outcome.ends)
        if options.verbose:
            sys.stdout.write("\n".join([str(draw(seed)), *outcome.lines()]) + "\n")
        if outcome.violation is not None:
            failed.append(seed)
            sys.stdout.write(f"seed {seed}: {outcome.violation}\n  python -m tests.simulation --seed {seed} -v\n")
            if not options.keep_going:
                break
    seconds = time.perf_counter() - started
    sys.stdout.write(
        f"{num} seeds in {seconds:.1f} s, {num / seconds:.0f} seeds/s; {len(failed)} failed; "
        f"longest wait after the last fault {max(calm):.1f} s; clients: {dict(ends)}\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
