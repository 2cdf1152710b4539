"""A supervised process' side of its parent: it ends with the parent, and sends it lines.

Two pipes come from the parent in the environment, as numbers of descriptors. Knows nothing of what either process does.
"""

from __future__ import annotations

import os
import sys
import threading

from penstock import stdio

LIFELINE = "PENSTOCK_LIFELINE_FD"
PARENT_PIPE = "PENSTOCK_PARENT_PIPE_FD"

_parent_pipe: int | None = None


def die_with_parent() -> None:
    """From now on this process ends at once when its parent has ended, and `send_to_parent` reaches the parent."""
    global _parent_pipe
    # Popped, so that no child of this process takes numbers for its own that mean nothing there.
    lifeline, pipe = os.environ.pop(LIFELINE, ""), os.environ.pop(PARENT_PIPE, "")
    if lifeline:
        _parent_pipe = int(pipe) if pipe else None
        threading.Thread(target=_end_at_eof, args=(int(lifeline),), daemon=True, name="lifeline").start()


def is_child() -> bool:
    """Started by a supervisor, and `die_with_parent` not called yet."""
    return LIFELINE in os.environ


def send_to_parent(line: str) -> None:
    """The parent gets the last such line with the `Death` of this process. Does nothing without a parent."""
    if _parent_pipe is not None:
        try:
            os.write(_parent_pipe, line.encode() + b"\n")
        except BrokenPipeError:
            pass  # the parent has ended, and the lifeline is about to end this process


def _end_at_eof(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns only at end of file: nothing is ever written
    stdio.write(sys.stderr, "penstock: the parent process exited; shutting down\n")
    os._exit(1)
