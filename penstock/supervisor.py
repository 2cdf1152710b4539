"""A small parent: keeps child processes running, and never leaves one behind.

Used by `penstock gateway --processes N`. A child that dies is started again with back-off; SIGTERM and SIGINT go to
every child, and the parent leaves when the last one has. Children share its process group, and each watches a pipe
whose other end only the parent holds: if the parent is killed, they end too. Knows nothing of what they do.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

LIFELINE = "PENSTOCK_LIFELINE_FD"

_BACKOFF_S = (0.05, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_S = 10.0
_REFUSED = 2  # the exit status of a process that was told something wrong: starting it again helps nobody
_STOPPED = (0, -signal.SIGTERM, -signal.SIGINT)  # a child may be told to stop before it has its handlers


class Supervisor:
    """`num` children of one command. `on_death(pid, status)` is told of every child that ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        num: int = 1,
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        on_death: Callable[[int, int], None] = lambda pid, status: None,
    ) -> None:
        self._command = list(command)
        self._num = num
        self._environ = dict(os.environ if environ is None else environ)
        self._pass_fds = tuple(pass_fds)
        self._on_death = on_death
        self._children: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._failures = 0
        self._is_stopping = False
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_out, False)

    def run(self) -> int:
        """Until stopped by a signal; the worst exit status of the last children."""
        lifeline, held = os.pipe()
        self._environ[LIFELINE] = str(lifeline)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        status = 0
        try:
            for _ in range(self._num):
                self._start(lifeline)
            while self._children:
                self._sleep(1.0)
                for code in self._reap():
                    if code == _REFUSED and not self._is_any_healthy():
                        status = _REFUSED
                        self._stop(signal.SIGTERM)
                    elif self._is_stopping and code not in _STOPPED:
                        status = max(status, abs(code))
                while not self._is_stopping and len(self._children) < self._num:
                    self._sleep(_BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)])
                    if not self._is_stopping:
                        self._start(lifeline)
        finally:
            signal.set_wakeup_fd(-1)
            os.close(held)
        return status

    def _start(self, lifeline: int) -> None:
        child = subprocess.Popen(self._command, env=self._environ, pass_fds=(*self._pass_fds, lifeline))
        self._children[child.pid] = (child, time.monotonic())

    def _reap(self) -> list[int]:
        codes = []
        for pid, (child, started_at) in list(self._children.items()):
            code = child.poll()
            if code is not None:
                del self._children[pid]
                self._failures = 0 if time.monotonic() - started_at > _HEALTHY_S else self._failures + 1
                self._on_death(pid, code)
                codes.append(code)
        return codes

    def _is_any_healthy(self) -> bool:
        """One that has run for a while shows that the others may, with the same settings."""
        return any(time.monotonic() - started_at > _HEALTHY_S for _, started_at in self._children.values())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop(number)

    def _stop(self, number: int) -> None:
        self._is_stopping = True
        for child, _ in list(self._children.values()):
            child.send_signal(number)

    def _sleep(self, timeout_s: float) -> None:
        """Until a signal (a child's death is one) or the timeout."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_in, selectors.EVENT_READ)
            if selector.select(timeout_s):
                os.read(self._wake_in, 4096)


def die_with_parent() -> None:
    """In a child: end at once when the parent is gone, however it went."""
    fd = os.environ.pop(LIFELINE, "")
    if fd:
        threading.Thread(target=_hold, args=(int(fd),), daemon=True, name="lifeline").start()


def _hold(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns only at end of file: nobody ever writes
    sys.stderr.write("penstock: the supervising process is gone; leaving\n")
    os._exit(1)
