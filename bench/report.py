"""From rounds to goals with their spread, to a file of results, to the tables of `bench/README.md` and
to the summary of them in `docs/performance.md`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cells import GOALS, Cell, Goal
from bench.measure import Times
from bench.stacks import GATEWAY, WINDOW_MS, WORKER
from tests.support.servers import find_servers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"  # for users: what to expect, costs, capacity
JOURNAL = ROOT / "bench" / "README.md"  # how it is measured, and the studies
BEGIN = "<!-- bench: written by `make bench` from the newest file in bench/results -->\n"
END = "<!-- /bench -->\n"
EXPECT_BEGIN = "<!-- expect: written by `make bench` from the newest file in bench/results -->\n"
EXPECT_END = "<!-- /expect -->\n"
LOADGEN_BEGIN = "<!-- loadgen: written by `python -m bench --loadgen PATH` -->\n"
LOADGEN_END = "<!-- /loadgen -->\n"
LIMIT_BEGIN = "<!-- limit: written by `python -m bench.limit` -->\n"
LIMIT_END = "<!-- /limit -->\n"
PACKAGES = ("penstock", "uvicorn", "uvloop", "httptools", "fastapi", "starlette", "redis", "hiredis", "msgspec")


def judge(rounds: Sequence[dict[str, Any]], goals: Sequence[Goal] = GOALS) -> list[dict[str, Any]]:
    """Each goal that the rounds have figures for: median and extremes over the rounds, and whether it is reached."""
    found = []
    for goal in goals:
        try:
            values = [value for seen in rounds if (value := goal.value(seen)) is not None]
        except KeyError:
            continue  # not measured in this run
        if not values:
            continue
        median = statistics.median(values)
        found.append(
            {
                "row": goal.row,
                "says": goal.says,
                "unit": goal.unit,
                "is_least": goal.is_least,
                "reach": goal.reach,
                "gate": goal.gate,
                "median": round(median, 3),
                "least": round(min(values), 3),
                "most": round(max(values), 3),
                "is_reached": goal.holds(median, goal.reach),
                "is_through_gate": goal.gate is None or goal.holds(median, goal.gate),
            }
        )
    return found


def about(command: str, times: Times, rounds: int) -> dict[str, Any]:
    """Where and how it was measured."""
    server = next(iter(find_servers().values()))
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": command,
        "rounds": rounds,
        "measure_s": times.measure_s,
        "warmup_s": times.warmup_s,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "server": " ".join(version.split()[:3]),
        "load_before": round(os.getloadavg()[0], 2),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "worker": " ".join(WORKER),
        "gateway": " ".join(GATEWAY),
        "window_ms": WINDOW_MS,
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no /proc here
    return platform.processor() or platform.machine()


def save(found: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def newest() -> Path:
    return max(RESULTS.glob("2*.json"))


def table(goals: Sequence[dict[str, Any]]) -> str:
    """The goals as a Markdown table."""
    rows = ["| | cell | measured | over the rounds | to reach | |", "|---|---|--:|--:|--:|---|"]
    for goal in goals:
        bound = f"{'≥' if goal['is_least'] else '≤'} {_text(goal['reach'], goal['unit'])}"
        spread = f"{_text(goal['least'], '')} – {_text(goal['most'], '')}"
        measured = _text(goal["median"], goal["unit"])
        says = "reached" if goal["is_reached"] else "**missed**"
        rows.append(f"| {goal['row']} | {goal['says']} | {measured} | {spread} | {bound} | {says} |")
    return "\n".join(rows) + "\n"


def _text(value: float, unit: str) -> str:
    shown = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return shown + (unit if unit in ("×", "%", "") else f" {unit}")


def foreign_cores(rounds: Sequence[dict[str, Any]]) -> float:
    """Cores that were busy with neither the systems nor the load; the median of all measurements."""
    runs = [run for seen in rounds for cell in seen.values() for run in cell.values() if "foreign_cores" in run]
    return _middle(runs, "foreign_cores") if runs else 0.0


def absolute(rounds: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> str:
    """Medians of the absolute figures, for orientation only."""
    rows = [
        "| cell | system | tokens/s | requests/s | first token p50 / p99 ms | CPU s per 1,000 tokens |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for cell in cells:
        for name in cell.systems:
            runs = [seen[cell.name][name] for seen in rounds if name in seen.get(cell.name, {})]
            if not runs:
                continue
            ttft = [run["ttft_ms"] for run in runs if run["ttft_ms"]]
            first = f"{_middle(ttft, 'p50'):,.1f} / {_middle(ttft, 'p99'):,.1f}" if ttft else "–"
            cpu = statistics.median(run["cpu_s"] / max(1, run["tokens_with_warmup"]) * 1000 for run in runs)
            rows.append(
                f"| {cell.name} | {name} | {_middle(runs, 'tokens_per_s'):,.0f} | "
                f"{_middle(runs, 'requests_per_s'):,.1f} | {first} | {cpu:.4f} |"
            )
    return "\n".join(rows) + "\n"


def _middle(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(statistics.median(run[name] for run in runs))


def render_section(found: dict[str, Any], cells: Sequence[Cell]) -> str:
    """What stands between the markers of the page."""
    at = found["about"]
    packages = ", ".join(f"{name} {version}" for name, version in at["packages"].items())
    num = sum(goal["is_reached"] for goal in found["goals"])
    return (
        f"{at['date']}, `{at['command']}`: {at['rounds']} rounds of {at['measure_s']:g} s a cell and system after "
        f"{at['warmup_s']:g} s of warm-up. {at['cores']} cores of {at['cpu']}, {at['memory_gb']:g} GB, {at['system']}; "
        f"Python {at['python']}, {at['server']}; {packages}. Meanwhile other programs used "
        f"{foreign_cores(found['rounds']):.2f} cores (median over the measurements).\n\n"
        f"{num} of {len(found['goals'])} are reached.\n\n"
        f"{table(found['goals'])}\n"
        f"The same run in absolute figures (medians), for orientation:\n\n{absolute(found['rounds'], cells)}"
    )


def render_journal(found: dict[str, Any], cells: Sequence[Cell]) -> str:
    """`JOURNAL` with its section written anew. Raises `ValueError` when it has no markers."""
    return between(JOURNAL.read_text(encoding="utf-8"), BEGIN, END, f"\n{render_section(found, cells)}\n")


# What a user reads of the goals: their names in the results, and what the page calls them.
EXPECTED = {
    "first token over bare, c=1, p50": "first token later than the bare server's, one stream, p50",
    "first token over bare, c=256, p50": "the same, 256 streams of 5 ms a token, p50",
    "first token over bare, c=256, p99": "the same, p99",
    "CPU per token over bare, 5 ms a step, c=256": "CPU of a token against the bare server's, the same streams",
    "stream, no compute, c=256, to bare": "tokens/s against the bare server, 256 streams without compute",
    "stream, no compute, c=256, to naive": "tokens/s against the naive form, the same",
    "JSON, no compute, c=256, to naive": "whole answers/s against the naive form, 256 at once",
    "cold start to the first answer": "from the start of the processes to the first answer",
}


def expected_table(found: dict[str, Any]) -> str:
    """The goals of `EXPECTED` and the highest absolute rates. What a run has not measured is left out."""
    goals = {goal["says"]: goal for goal in found["goals"]}
    rows = ["| | measured | over the rounds |", "|---|--:|--:|"]
    for says, shown in EXPECTED.items():
        if goal := goals.get(says):
            spread = f"{_text(goal['least'], '')} – {_text(goal['most'], '')}"
            rows.append(f"| {shown} | {_text(goal['median'], goal['unit'])} | {spread} |")
    for cell, key, shown in (
        ("stream 256", "tokens_per_s", "tokens/s, streams without compute, 256 at once"),
        ("json 256", "requests_per_s", "whole answers/s without compute, 256 at once"),
    ):
        if rates := [seen[cell]["penstock"][key] for seen in found["rounds"] if "penstock" in seen.get(cell, {})]:
            rows.append(f"| {shown} | {statistics.median(rates):,.0f} | {min(rates):,.0f} – {max(rates):,.0f} |")
    return "\n".join(rows) + "\n"


def render_page(found: dict[str, Any]) -> str:
    """`PAGE` with its summary written anew. Raises `ValueError` when it has no markers."""
    at = found["about"]
    text = (
        f"\nOne gateway, one worker and one Redis, {at['cores']} cores of {at['cpu']} that the load generator shares; "
        f"64 tokens an answer. {at['date']}, `{at['command']}`, median of {at['rounds']} rounds.\n\n"
        f"{expected_table(found)}\n"
    )
    return between(PAGE.read_text(encoding="utf-8"), EXPECT_BEGIN, EXPECT_END, text)


def render_loadgen(found: dict[str, Any]) -> str:
    """`JOURNAL` with what another load generator found, written anew."""
    at = found["about"]
    num = sum(goal["is_reached"] for goal in found["goals"])
    text = (
        f"\n{at['date']}, `{at['command']}`: {at['rounds']} rounds of {at['measure_s']:g} s a cell and system on the "
        f"machine above. Meanwhile other programs used {foreign_cores(found['rounds']):.2f} cores. "
        f"{num} of {len(found['goals'])} are reached.\n\n{table(found['goals'])}\n"
    )
    return between(JOURNAL.read_text(encoding="utf-8"), LOADGEN_BEGIN, LOADGEN_END, text)


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with `text` between the two markers. Raises `ValueError` when it has none."""
    head, first, rest = page.partition(begin)
    _, last, tail = rest.partition(end)
    if not first or not last:
        raise ValueError(f"the page has lost its marker {begin.strip()}")
    return head + first + text + last + tail


def python_command(arguments: Sequence[str]) -> str:
    return " ".join(["python -m bench", *arguments])
