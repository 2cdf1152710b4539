"""Writes the generated pages, or with `--check` says which are stale: `make docs`, `make lint`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from penstock import metrics
from penstock.settings.render import render_env_example, render_markdown

ROOT = Path(__file__).resolve().parent.parent

PAGES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": render_markdown,
    "docs/metrics.md": metrics.render_markdown,
    ".env.example": render_env_example,
}


def stale() -> list[str]:
    """The pages that are not what the code says."""
    return [
        page
        for page, render in PAGES.items()
        if not (ROOT / page).is_file() or (ROOT / page).read_text(encoding="utf-8") != render()
    ]


def main(arguments: list[str]) -> int:
    pages = stale()
    if "--check" in arguments:
        if pages:
            print(f"stale, run `make docs`: {', '.join(pages)}", file=sys.stderr)
        return 1 if pages else 0
    for page in pages:
        (ROOT / page).write_text(PAGES[page](), encoding="utf-8")
        print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
