"""`python -m penstock.metrics` writes the text of `docs/metrics.md` to the standard output."""

from __future__ import annotations

import sys

from penstock.metrics import render_markdown

sys.stdout.write(render_markdown())
