"""Hooks of mkdocs for `make docs-site`.

The site holds the pages alone, so links to other files of the repository become their text. A link to a file that does
not exist stays as it is, and `--strict` reports it. A page that would load anything from another host fails the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")
_TAG = re.compile(r"<(?:script|link|img|iframe|source|audio|video|embed|object)\b[^>]*>")
_OTHER_HOST = re.compile(r"""\b(?:src|href|srcset|data)\s*=\s*["']?(?:https?:)?//""")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(lambda link: link[1] if (ROOT / link[2]).exists() else link[0], markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Raises `ValueError` for a page that loads something from another host; readers may follow links to one."""
    if foreign := [tag for tag in _TAG.findall(output) if _OTHER_HOST.search(tag)]:
        raise ValueError(f"{page} loads from another host: {foreign[0]}")
    return output
