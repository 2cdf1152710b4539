"""The signals that stop a process, and how it takes them. Knows nothing of what stopping means."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_stop_signal(handler: Callable[[int], None]) -> None:
    """Call `handler` with the number of each stop signal, in the running loop; of two within a moment only once."""
    loop, once = asyncio.get_running_loop(), once_each(handler)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, once, number)


def once_each(handler: Callable[P, None], within_s: float = 0.5) -> Callable[P, None]:
    """A handler of signals that takes two within `within_s` for one.

    Ctrl-C in a terminal reaches the parent and its children, and the parent passes it on; a second signal means hurry.
    """
    last = float("-inf")

    def handle(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > within_s:
            last = now
            handler(*args, **kwargs)

    return handle
