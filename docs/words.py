"""Counts the idiom that this text grew up with, and lets no more of it in: part of `make lint`.

The code and the pages are to be plain English: name the actor ("the worker", not "whoever"), "is not an X" instead of
"is no X", "next to" instead of "beside", and things do not speak. What there is of the old idiom is counted below for
the package (docstrings, comments, strings) and for the pages. A change may lower a count, and must then lower its
number here; none may raise it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "penstock": sorted([*ROOT.glob("penstock/**/*.py"), *ROOT.glob("penstock/**/*.lua")]),
    "docs": sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"]),
}
# phrase: how often it may stand in the package, and in the pages
ALLOWED = {
    "is no": (23, 6),
    "are no": (3, 3),
    "nobody": (1, 6),
    "somebody": (0, 1),
    "whoever": (0, 2),
    "for ever": (0, 0),
    "told": (0, 3),
    "beside": (29, 8),
    "says": (48, 49),
    "said": (127, 6),
    "in vain": (0, 0),
}


def count(phrase: str, where: str) -> int:
    """Case does not matter; a phrase is whole words."""
    pattern = re.compile(rf"(?<!\w){phrase}(?!\w)", re.IGNORECASE)
    return sum(len(pattern.findall(path.read_text("utf-8"))) for path in SOURCES[where])


def wrong() -> list[str]:
    """One line for each count that is not what is written here."""
    lines = []
    for phrase, allowed in ALLOWED.items():
        for where, limit in zip(SOURCES, allowed, strict=True):
            found = count(phrase, where)
            if found > limit:
                lines.append(f"{where}: {phrase!r} stands {found} times, {limit} are allowed: say it in plain English")
            elif found < limit:
                lines.append(f"{where}: {phrase!r} stands only {found} times: lower the {limit} in docs/words.py")
    return lines


if __name__ == "__main__":
    problems = wrong()
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(1 if problems else 0)
