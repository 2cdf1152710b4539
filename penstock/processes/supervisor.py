"""A small parent: keeps child processes running, and never leaves one behind.

Used by `penstock gateway --processes N` and by a supervised worker. A child that ends, with whatever status but 2, is
started again with back-off; SIGTERM and SIGINT go to every child, and the parent leaves when the last one has. Children
share its process group, and each watches a pipe whose other end only the parent holds: if the parent is killed, they
end too. By another pipe a child may send lines, such as its name; its `Death` holds the last one. Knows
nothing of what they do.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import ParamSpec, Protocol

from penstock import stdio

P = ParamSpec("P")

logger = logging.getLogger(__name__)

LIFELINE = "PENSTOCK_LIFELINE_FD"
MOUTH = "PENSTOCK_MOUTH_FD"

_BACKOFF_S = (0.05, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_S = 10.0
_STAND_IN_S = 0.1  # what comes in a shorter pause waits for the next child
_LISTEN_EVERY_S = 1.0
_MAX_LINE = 4096
_REFUSED = 2  # exit status of an invalid configuration: do not restart
_STOPPED = (0, -signal.SIGTERM, -signal.SIGINT)  # a child may get the signal before it has its handlers


@dataclass(frozen=True, slots=True)
class Death:
    """A child that has ended. `status`: negative for a signal; `said`: its last line by `tell_parent`, "" for none."""

    pid: int
    status: int
    said: str = ""


def program(module: str, *args: str) -> list[str]:
    """The command that runs `module` of this installation. -P: a file in the working directory replaces no module."""
    return [sys.executable, "-P", "-m", module, *args]


class StandIn(Protocol):
    """What answers in the parent while none of its children runs."""

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
        """Until stopped by a signal; the worst exit status of the last children, 128 and more for a signal."""
        lifeline, held = os.pipe()
        self._environ[LIFELINE] = str(lifeline)
        for number in (signal.SIGTERM, signal.SIGINT):
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
            except OSError:  # no memory, no process, no descriptor left: no reason to take the others down
                logger.exception("a child process could not be started")
                self._failed()

    def _failed(self) -> None:
        """One more child is missing: another is due, the later the more of them died young."""
        self._due.append(time.monotonic() + _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)])
        self._due.sort()
        self._failures += 1

    def _start(self, lifeline: int) -> None:
        ear, mouth = os.pipe()
        os.set_blocking(ear, False)
        try:
            environ = {**self._environ, MOUTH: str(mouth)}
            process = subprocess.Popen(self._command, env=environ, pass_fds=(*self._pass_fds, lifeline, mouth))
        except OSError:
            os.close(ear)
            raise
        finally:
            os.close(mouth)
        self._children[process.pid] = _Child(process, ear)
        if self._is_stopping:  # the signal came while this one was not yet in the list
            process.terminate()

    def _reap(self) -> list[int]:
        codes = []
        for pid, child in list(self._children.items()):
            code = child.process.poll()
            child.listen()
            if code is not None:
                del self._children[pid]
                os.close(child.ear)
                self._failures = 0 if child.is_healthy else self._failures
                self._failed()
                try:
                    self._on_death(Death(pid, code, child.said))
                except Exception:  # the other children need their parent
                    logger.exception("a child's death could not be dealt with")
                codes.append(code)
        return codes

    def _is_any_healthy(self) -> bool:
        """One that has run for a while shows that the others may, with the same settings."""
        return any(child.is_healthy for child in self._children.values())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop(number)

    def _stop(self, number: int) -> None:
        self._is_stopping = True
        for child in list(self._children.values()):
            child.process.send_signal(number)

    def _sleep(self) -> None:
        """Until a signal (a child's death is one), until a child is due, or for a moment."""
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
    """A running child and the last line that it sent by `tell_parent`."""

    def __init__(self, process: subprocess.Popen[bytes], ear: int) -> None:
        self.process = process
        self.ear = ear
        self.said = ""
        self._heard = b""
        self._started_at = time.monotonic()

    @property
    def is_healthy(self) -> bool:
        return time.monotonic() - self._started_at > _HEALTHY_S

    def listen(self) -> None:
        """Take in what has come, and keep the last whole line."""
        try:
            while data := os.read(self.ear, 65536):
                *lines, rest = (self._heard + data).split(b"\n")
                self._heard = rest[-_MAX_LINE:]
                if lines:
                    self.said = lines[-1][-_MAX_LINE:].decode("utf-8", "replace")
        except BlockingIOError:
            pass  # nothing more for now


# ── in a child ───────────────────────────────────────────────────────────────────────────────────────────────────────

_mouth: int | None = None


def die_with_parent() -> None:
    """End at once when the parent is gone, however it went; from now on `tell_parent` reaches it."""
    global _mouth
    # Popped, so that no child of this process takes numbers for its own that mean nothing there.
    lifeline, mouth = os.environ.pop(LIFELINE, ""), os.environ.pop(MOUTH, "")
    if lifeline:
        _mouth = int(mouth) if mouth else None
        threading.Thread(target=_hold, args=(int(lifeline),), daemon=True, name="lifeline").start()


def is_child() -> bool:
    """Started by a supervisor, and `die_with_parent` not called yet."""
    return LIFELINE in os.environ


def tell_parent(line: str) -> None:
    """The parent gets it with this process' death, if it is the last one. Nothing without a parent."""
    if _mouth is not None:
        try:
            os.write(_mouth, line.encode() + b"\n")
        except BrokenPipeError:
            pass  # it is gone, and the lifeline is about to end this process


def once_each(handler: Callable[P, None], within_s: float = 0.5) -> Callable[P, None]:
    """A handler of signals that takes two within a moment for one.

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


def _hold(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns only at end of file: nothing is ever written
    stdio.write(sys.stderr, "penstock: the parent process exited; shutting down\n")
    os._exit(1)
