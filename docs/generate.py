"""Writes the generated pages, or with `--check` says which are stale: `make docs`, `make lint`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from penstock import errors, metrics
from penstock.settings.render import render_env_example, render_markdown

ROOT = Path(__file__).resolve().parent.parent

_TREE_LINE = re.compile(r"([a-z_]+) +(\d{3}) +(yes|no) +([a-z_]+) +(.+)")


def error_rows() -> list[tuple[str, ...]]:
    """The tree at the head of `errors.py`: code, status, whether to try again, OpenAI type, meaning."""
    rows = [match.groups() for line in (errors.__doc__ or "").splitlines() if (match := _TREE_LINE.search(line))]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def render_api() -> str:
    """`docs/api.md` with its table of errors written anew."""
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    head, begin, rest = page.partition("<!-- errors: written by `make docs` from penstock/errors.py -->\n")
    _, end, tail = rest.partition("<!-- /errors -->")
    rows = "".join(
        f"| {status} | `{code}` | {kind} | {again} | {when} |\n" for code, status, again, kind, when in error_rows()
    )
    table = "| status | code | type | again? | when |\n|---|---|---|---|---|\n" + rows
    return head + begin + table + end + tail


PAGES: dict[str, Callable[[], str]] = {
    "docs/api.md": render_api,
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
