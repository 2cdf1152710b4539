"""Counts phrases that are hard to read, and fails if there are more of them than before: part of `make lint`.

Code and pages are in plain English: a sentence names its actor ("the worker"), "is not an X" replaces "is no X", "next
to" replaces "beside", "continues" replaces "goes on", and things neither speak nor hear. The table has how often each
phrase may occur in the package (docstrings, comments, strings) and in the pages. A change that lowers a count lowers
its number here; no change may raise one.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "penstock": sorted([*ROOT.glob("penstock/**/*.py"), *ROOT.glob("penstock/**/*.lua")]),
    "docs": sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"]),
}
# phrase: how often it may occur in the package, and in the pages
ALLOWED = {
    "is no": (16, 1),
    "are no": (3, 2),
    "nobody": (0, 0),
    "somebody": (0, 0),
    "whoever": (0, 0),
    "for ever": (0, 0),
    "told": (0, 0),
    "beside": (0, 0),
    "says": (6, 0),
    "said": (13, 0),
    "in vain": (0, 0),
    "wants": (0, 1),
    "stands": (0, 0),
    "stood": (1, 0),
    "bears": (0, 0),
    "yesterday": (0, 0),
    "of the hour": (0, 0),
    "mends": (0, 0),
    "mended": (0, 0),
    "goes back": (0, 0),
    "went back": (0, 0),
    "goes on": (1, 0),
    "went on": (0, 0),
    "gets on": (0, 0),
    "getting on": (0, 0),
    "hears": (2, 0),
    "heard": (3, 0),
    "believed": (1, 0),
    "tells": (0, 0),
    "what comes": (5, 0),
    "what came": (1, 0),
    "forgotten": (0, 0),
    "taken up": (0, 0),
    "but for": (0, 0),
    "anybody": (0, 0),
}


@functools.cache
def _read(paths: tuple[Path, ...]) -> str:
    """All of these files in lower case, one after the other, with one space between words."""
    text = "\0".join(path.read_text("utf-8").lower() for path in paths)
    return re.sub(r"[ \n#-]+", " ", text)  # a comment may continue in the next line


def count(phrase: str, where: str) -> int:
    """Case does not matter; a phrase is whole words, also across the end of a line."""
    # A pattern that begins with the phrase itself is found ten times faster than one that begins with a boundary.
    text = _read(tuple(SOURCES[where]))
    starts = [found.start() for found in re.finditer(rf"{re.escape(phrase)}\b", text)]
    return sum(not re.match(r"\w", text[at - 1 : at]) for at in starts)


def wrong() -> list[str]:
    """One line for each count that is not what is written here."""
    lines = []
    for phrase, allowed in ALLOWED.items():
        for where, limit in zip(SOURCES, allowed, strict=True):
            found = count(phrase, where)
            if found > limit:
                lines.append(f"{where}: {phrase!r} occurs {found} times, {limit} are allowed: use plain English")
            elif found < limit:
                lines.append(f"{where}: {phrase!r} occurs only {found} times: lower the {limit} in docs/words.py")
    return lines


if __name__ == "__main__":
    problems = wrong()
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(1 if problems else 0)
