"""The command `penstock`. Reads flags, calls what does the work, prints; knows nothing else."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

PROCESSES = ("serve", "gateway", "worker")


def main() -> None:
    """The entry point of the console script."""
    # Ctrl-C during the imports, which take a good part of a second, ends the process without a traceback.
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from penstock import stdio

    stdio.open_missing()
    app = _commands()
    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app()


def _commands() -> Callable[[], None]:
    """A process that stays imports no command but its own kind: an HTTP client and progress bars would cost it 6 MB."""
    if sys.argv[1:2] and sys.argv[1] in PROCESSES:
        from penstock.cli.processes import app
    else:
        from penstock.cli.app import app
    return app
