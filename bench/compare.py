"""`python -m bench.compare TREE`: this checkout against another one, in turns; what a request costs each process.

For the question whether a change is paid for: the same load generator, fresh processes for every measurement, each
tree first as often as the other. `git worktree add TREE COMMIT` makes a checkout to compare with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

from bench.cells import CELLS, Cell
from bench.measure import DISTURBED, Times, load
from bench.stacks import launch

TREES = ("that", "this")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("tree", type=Path, help="the other checkout, whose dependencies are installed here as well")
    parser.add_argument("--cells", default="stream 32,json 32,json 256", help="of `make bench`, with commas between")
    parser.add_argument("--systems", default="penstock,embedded", help="penstock, embedded or both")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    asked = parser.parse_args(arguments)
    if not (asked.tree / "penstock" / "__init__.py").is_file():
        parser.error(f"{asked.tree} is not a checkout of Penstock")
    known = {cell.name: cell for cell in CELLS if not cell.is_burst and not cell.rate}
    names, systems = asked.cells.split(","), asked.systems.split(",")
    if not set(names) <= known.keys() or not set(systems) <= {"penstock", "embedded"}:
        parser.error(f"cells are {', '.join(known)}; systems are penstock, embedded")
    trees = {"that": asked.tree.resolve(), "this": Path(__file__).resolve().parent.parent}
    print("| cell | system | requests/s | change | CPU of a request, us, that -> this |\n|---|---|--:|--:|---|")
    for name in names:
        for system in systems:
            found: dict[str, list[dict[str, float]]] = {which: [] for which in TREES}
            for number in range(asked.rounds):
                for which in TREES if number % 2 == 0 else reversed(TREES):
                    times = Times(asked.seconds, 1.0, 0.0)
                    found[which].append(_measure(known[name], system, trees[which], times))
            print(row(name, system, found), flush=True)
    return 0


def _measure(cell: Cell, system: str, tree: Path, times: Times) -> dict[str, float]:
    """Requests a second, and the CPU of one in each process, us."""
    stack = launch(system, cell.step_ms, tree)
    try:
        stack.wait_ready()
        before = stack.cpu_s_each()
        flags = [f"--concurrency={cell.concurrency}", f"--output-tokens={cell.tokens}"]
        run = load(stack, times, *flags, *([] if cell.is_stream else ["--no-stream"]))
        if run["failed"]:
            raise RuntimeError(f"{run['failed']} requests failed: {run['errors']}")
        if run["foreign_cores"] > DISTURBED:
            print(f"(others used {run['foreign_cores']:.1f} cores)", file=sys.stderr)
        num = run["tokens_with_warmup"] / cell.tokens
        used = {role: 1e6 * (value - before[role]) / num for role, value in stack.cpu_s_each().items()}
        return {"requests_per_s": run["requests_per_s"], **used}
    finally:
        stack.stop()


def row(name: str, system: str, found: dict[str, list[dict[str, float]]]) -> str:
    """One line of the table: the medians of the rounds."""
    that, this = ({key: median(run[key] for run in found[which]) for key in found[which][0]} for which in TREES)
    rates = that.pop("requests_per_s"), this.pop("requests_per_s")
    costs = ", ".join(f"{role} {that[role]:.0f} -> {this[role]:.0f}" for role in that)
    change = 100 * (rates[1] / rates[0] - 1)
    return f"| {name} | {system} | {rates[0]:,.0f} -> {rates[1]:,.0f} | {change:+.0f} % | {costs} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
