"""Counts the idiom that this text grew up with, and lets no more of it in: part of `make lint`.

Code and pages are in plain English: a sentence names its actor ("the worker"), "is not an X" replaces "is no X", "next
to" replaces "beside", and things do not speak. How often each phrase of the idiom stands in the package (docstrings,
comments, strings) and in the pages is written below. A change that lowers a count lowers its number here; no change may
raise one.
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
    "is no": (20, 4),
    "are no": (3, 2),
    "nobody": (0, 0),
    "somebody": (0, 0),
    "whoever": (0, 0),
    "for ever": (0, 0),
    "told": (0, 0),
    "beside": (0, 0),
    "says": (7, 9),
    "said": (21, 0),
    "in vain": (0, 0),
}


def count(phrase: str, where: str) -> int:
    """Case does not matter; a phrase is whole words, also across the end of a line."""
    between = r"[ \n#-]+"  # a comment may go on in the next line
    pattern = re.compile(rf"\b{between.join(phrase.split())}\b", re.IGNORECASE)
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
