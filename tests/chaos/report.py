"""The report of a run: JSON for machines, a table for people, and the same table for the documentation."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.chaos.run import Result
from tests.support import servers

BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"


def build(results: Sequence[Result], command: str, seed: int, took_s: float) -> dict[str, Any]:
    """The report as it is written to disk."""
    return {
        "command": command,
        "seed": seed,
        "took_s": round(took_s, 1),
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": _memory_gib()},
        "versions": {
            "penstock": version("penstock"),
            "python": platform.python_version(),
            "server": _server(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "passed": sum(not result.problems and not result.skipped for result in results),
        "failed": sum(bool(result.problems) for result in results),
        "skipped": sum(bool(result.skipped) for result in results),
        "scenarios": [asdict(result) for result in results],
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: where and how it was measured, a row for each scenario, and what else the scenarios measured."""
    where, made = report["hardware"], report["versions"]
    lines = [
        f"`{report['command']}`, seed {report['seed']}, {report['took_s']:.0f} s, {report['at'][:10]}: "
        f"{report['passed']} passed, {report['failed']} failed.",
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB; Python {made['python']}, "
        f"{made['server']}, {made['system']}; clients, server and all processes on this one machine.",
        "",
        "| fault | times | requests | lost | repeated | failed | interrupted | pause p50 / p99 / max, ms | target | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in report["scenarios"]:
        lines.append(_row(one))
    lines += [
        "",
        "Columns: `lost` counts tokens and requests without an end, `repeated` counts tokens. `interrupted` counts the",
        "streams that a fault hit after their first token; the pauses are the longest of each of these streams, as its",
        "client saw it. `held, slower`: each request ended as promised, but a figure was up to three times its target.",
    ]
    slower = [f"* {one['name']}: {slower}" for one in report["scenarios"] for slower in one["slower"]]
    if slower:
        lines += ["", "Slower:", "", *slower]
    notes = [f"* {one['name']}: {name}: {value}" for one in report["scenarios"] for name, value in one["notes"].items()]
    if notes:
        lines += ["", "Also measured:", "", *notes]
    return "\n".join(lines) + "\n"


def _row(one: dict[str, Any]) -> str:
    if one["skipped"]:
        return f"| {one['name']} | – | – | – | – | – | – | – | {one['target']} | skipped: {one['skipped']} |"
    pause = one["pause_ms"]
    pauses = " / ".join(f"{pause[share]:.0f}" for share in ("p50", "p99", "max")) if pause else "–"
    failed = ", ".join(f"{code} {num}" for code, num in one["failed"].items()) or "0"
    times = sum(one["injected"].values())
    verdict = "**broken**" if one["problems"] else "held, slower" if one["slower"] else "held"
    return (
        f"| {one['name']} | {times} | {one['requests']} | {one['lost']} | {one['repeated']} | {failed} "
        f"| {one['interrupted']} | {pauses} | {one['target']} | {verdict} |"
    )


def write(report: dict[str, Any], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("# Chaos\n\n" + table(report), encoding="utf-8")


def quote(report: dict[str, Any], page: Path) -> str:
    """The page with the report's table between its markers."""
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table(report)}{END}{tail}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _server() -> str:
    name, path = next(iter(servers.find_servers().items()))
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.split()
    number = next((word[2:] for word in said if word.startswith("v=")), "")
    return f"{name} {number}"
