"""A small parent: keeps child processes running, and never leaves one behind.

Used by `penstock gateway --processes N` and by a supervised worker. A child that ends, with whatever status but 2, is
started again with back-off; SIGTERM and SIGINT go to every child, and the parent leaves when the last one has. Children
share its process group, and each watches a pipe whose other end only the parent holds: if the parent is killed, they
end too. By another pipe a child may send lines, such as its name; its `Death` holds the last one. What a child does
for this is in `child.py`. Knows nothing of what children are for.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from penstock.processes.child import LIFELINE, PARENT_PIPE
from penstock.processes.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

_BACKOFF_S = (0.05, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_S = 10.0
_STAND_IN_S = 0.1  # connections that arrive in a shorter pause wait for the next child
_LISTEN_EVERY_S = 1.0
_MAX_LINE = 4096
_REFUSED = 2  # exit status of an invalid configuration: do not restart
_STOPPED = (0, *(-number for number in STOP_SIGNALS))  # a child may get the signal before it has its handlers


@dataclass(frozen=True, slots=True)
class Death:
    """A child that has ended. `status`: negative for a signal; `last_line`: its last by `send_to_parent`, or ""."""

    pid: int
    status: int
    last_line: str = ""


def program(module: str, *args: str) -> list[str]:
    """The command that runs `module` of this installation. -P: a file in the working directory replaces no module."""
    return [sys.executable, "-P", "-m", module, *args]


class StandIn(Protocol):
    """Answers clients in the parent while none of its children runs."""

    def fileno(self) -> int:
        """Readable when something waits for an answer."""
        ...

    def answer(self) -> None:
        """Answer what waits; must not block."""
        ...


class Supervisor:
    """`num` children of one command. `on_death` is called for every child that ends, before another is started.

    `stand_in` answers while no child runs, except in the first, short pause.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        num: int = 1,
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        on_death: Callable[[Death], None] = lambda death: None,
        stand_in: StandIn | None = None,
    ) -> None:
        self._command = list(command)
        self._num = num
        self._environ = dict(os.environ if environ is None else environ)
        self._pass_fds = tuple(pass_fds)
        self._on_death = on_death
        self._stand_in = stand_in
        self._children: dict[int, _Child] = {}
        self._due: list[float] = []  # when each of the missing children is to be started, monotonic; sorted
        self._failures = 0
        self._is_stopping = False
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_out, False)

    def run(self) -> int:
        """Run until a signal. Returns the worst exit status of the last children, 128 and more for a signal."""
        lifeline, held = os.pipe()
        self._environ[LIFELINE] = str(lifeline)
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        status = 0
        try:
            self._due = [time.monotonic()] * self._num
            while self._children or (self._due and not self._is_stopping):
                self._start_due(lifeline)
                self._sleep()
                for code in self._reap():
                    if code == _REFUSED and not self._is_any_healthy():
                        status = _REFUSED
                        self._stop(signal.SIGTERM)
                    elif self._is_stopping and code not in _STOPPED:
                        status = max(status, code if code > 0 else 128 - code)
        finally:
            signal.set_wakeup_fd(-1)
            os.close(held)
        return status

    def _start_due(self, lifeline: int) -> None:
        while self._due and self._due[0] <= time.monotonic() and not self._is_stopping:
            del self._due[0]
            try:
                self._start(lifeline)
            except OSError:  # out of memory, processes or descriptors: the other children keep running
                logger.exception("a child process could not be started")
                self._failed()

    def _failed(self) -> None:
        """One more child is missing: schedule another, the later the more of them have died young."""
        self._due.append(time.monotonic() + _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)])
        self._due.sort()
        self._failures += 1

    def _start(self, lifeline: int) -> None:
        child_pipe, parent_pipe = os.pipe()
        os.set_blocking(child_pipe, False)
        try:
            environ = {**self._environ, PARENT_PIPE: str(parent_pipe)}
            process = subprocess.Popen(self._command, env=environ, pass_fds=(*self._pass_fds, lifeline, parent_pipe))
        except OSError:
            os.close(child_pipe)
            raise
        finally:
            os.close(parent_pipe)
        self._children[process.pid] = _Child(process, child_pipe)
        if self._is_stopping:  # the signal came while this one was not yet in the list
            process.terminate()

    def _reap(self) -> list[int]:
        codes = []
        for pid, child in list(self._children.items()):
            code = child.process.poll()
            child.read_lines()
            if code is not None:
                del self._children[pid]
                os.close(child.pipe)
                self._failures = 0 if child.is_healthy else self._failures
                self._failed()
                try:
                    self._on_death(Death(pid, code, child.last_line))
                except Exception:  # the other children need their parent
                    logger.exception("a child's death could not be dealt with")
                codes.append(code)
        return codes

    def _is_any_healthy(self) -> bool:
        """Whether a child has run for a while. Then the settings are valid, as all children have the same."""
        return any(child.is_healthy for child in self._children.values())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop(number)

    def _stop(self, number: int) -> None:
        self._is_stopping = True
        for child in list(self._children.values()):
            child.process.send_signal(number)

    def _sleep(self) -> None:
        """Wait for a signal (a child's death sends one), until a child is due, or for `_LISTEN_EVERY_S`."""
        due_s = math.inf if self._is_stopping or not self._due else max(0.0, self._due[0] - time.monotonic())
        stand_in = None if self._children or due_s < _STAND_IN_S else self._stand_in
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_in, selectors.EVENT_READ)
            if stand_in is not None:
                selector.register(stand_in.fileno(), selectors.EVENT_READ)
            for key, _ in selector.select(min(due_s, _LISTEN_EVERY_S)):
                if key.fd == self._wake_in:
                    os.read(self._wake_in, 4096)
                elif stand_in is not None:
                    stand_in.answer()


class _Child:
    """A running child and the last line that it sent by `send_to_parent`."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        self.process = process
        self.pipe = pipe
        self.last_line = ""
        self._part = b""  # of a line that has not arrived whole
        self._started_at = time.monotonic()

    @property
    def is_healthy(self) -> bool:
        return time.monotonic() - self._started_at > _HEALTHY_S

    def read_lines(self) -> None:
        """Read what the child has sent, and keep the last whole line."""
        try:
            while data := os.read(self.pipe, 65536):
                *lines, rest = (self._part + data).split(b"\n")
                self._part = rest[-_MAX_LINE:]
                if lines:
                    self.last_line = lines[-1][-_MAX_LINE:].decode("utf-8", "replace")
        except BlockingIOError:
            pass  # nothing more for now
