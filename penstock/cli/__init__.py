"""The command `penstock`. Reads flags, calls what does the work, prints; knows nothing else."""

from __future__ import annotations

import sys

from penstock import stdio

PROCESSES = ("serve", "gateway", "worker")


def main() -> None:
    """The entry point of the console script.

    A process that stays imports no command but its own kind: an HTTP client and progress bars would cost it 6 MB.
    """
    stdio.open_missing()
    if sys.argv[1:2] and sys.argv[1] in PROCESSES:
        from penstock.cli.processes import app
    else:
        from penstock.cli.app import app
    app()
