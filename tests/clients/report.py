"""What was run with each program, as JSON and as a table.

`python -m tests.clients.report JSON PAGE` puts the table into the page.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- clients:begin -->", "<!-- clients:end -->"


@dataclass
class Row:
    """One program. `ran`, `failed`: what was tried, in words. `cannot`: what it showed that it cannot do, and why."""

    versions: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    cannot: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: str = ""


def phrase(test: str) -> str:
    """What a test does, by its name: `test_a_chat[x]` is `a chat (x)`."""
    name, _, case = test.removeprefix("test_").rstrip("]").partition("[")
    return name.replace("_", " ") + (f" ({case})" if case else "")


def build(rows: Mapping[str, Row]) -> dict[str, Any]:
    """The report as it is written to disk."""
    return {
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "penstock": version("penstock"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "programs": {title: asdict(rows[title]) for title in sorted(rows, key=str.lower)},
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: where and when, and a row for each program."""
    programs = report["programs"]
    num = {kind: sum(bool(one[kind]) for one in programs.values()) for kind in ("failed", "skipped")}
    lines = [
        f"`make test-clients`, {report['at'][:10]}, Penstock {report['penstock']}, Python {report['python']}, "
        f"{report['system']}: {len(programs)} programs, {num['failed']} with a failure, {num['skipped']} skipped.",
        "",
        "| program | versions | ran | cannot |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(title, one) for title, one in programs.items())]) + "\n"


def _row(title: str, one: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items()) or "–"
    ran = _joined(one["ran"]) or "–"
    if one["failed"]:
        ran += f"; **failed**: {_joined(one['failed'])}"
    if one["skipped"]:
        ran = f"skipped: {one['skipped']}"
    return f"| {title} | {versions} | {ran} | {'; '.join(one['cannot']) or '–'} |"


def _joined(phrases: list[str]) -> str:
    """Each phrase once, with all its cases in one pair of brackets."""
    cases: dict[str, list[str]] = {}
    for each in phrases:
        name, _, case = each.rstrip(")").partition(" (")
        cases.setdefault(name, []).extend([case] if case else [])
    return ", ".join(name + (f" ({', '.join(found)})" if found else "") for name, found in cases.items())


def write(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def quote(report: dict[str, Any], page: Path) -> str:
    """The page with the report's table between its marks."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    return f"{head}{BEGIN}\n{table(report)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("page", type=Path)
    asked = parser.parse_args()
    asked.page.write_text(quote(json.loads(asked.report.read_text(encoding="utf-8")), asked.page), encoding="utf-8")
