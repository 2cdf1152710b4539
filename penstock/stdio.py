"""The standard streams of a process that serves: closed ones are opened, and no line waits for its reader.

A pipe that is not read, a stopped terminal and a full disk make write(2) wait or fail. Here a thread writes, and what
it cannot keep up with is dropped and counted. Knows nothing of what the lines contain.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO

MAX_BYTES = 1024 * 1024  # of lines that wait for the reader
FLUSH_S = 1.0  # how long the end of a process waits for its reader
PAUSE_S = 0.05  # between two writes: each waking of the thread takes the interpreter from the serving threads
RETRY_S = 0.05


def open_missing() -> None:
    """Open /dev/null in place of each of the descriptors 0, 1 and 2 that is closed.

    Else the next socket or pipe gets that number, libuv aborts on it, and a line for stderr goes to a client.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:  # as Python leaves it where the descriptor was closed
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def write(stream: IO[str], text: str) -> None:
    """Write `text` to a stream whose reader may have ended or be stuck. Takes `FLUSH_S` at most and raises nothing."""
    try:
        fd = stream.fileno()
    except OSError:  # a stream in memory
        stream.write(text)
        return
    writer(fd).put(text)
    writer(fd).flush()


@functools.cache
def writer(fd: int) -> LineWriter:
    """The process' one writer to a descriptor. At the end of the process it writes what waits, within `FLUSH_S`."""
    made = LineWriter(fd)
    atexit.register(made.flush)
    os.register_at_fork(after_in_child=made.reset)  # an engine may fork, and threads stay behind
    return made


class LineWriter:
    """Whole lines to a descriptor. `put` never waits; from any thread, one at a time.

    Why a thread: O_NONBLOCK belongs to the open file, which a terminal and all processes on one pipe share, and a
    descriptor that poll calls writable may be full again, by the line of another process, when write comes. Only this
    daemon thread may hang in it, which holds up no exit. It uses the bare descriptor: a thread that hung with the lock
    of `sys.stderr` would abort the interpreter at its end.
    """

    def __init__(self, fd: int, max_bytes: int = MAX_BYTES) -> None:
        self._fd = fd
        self._max_bytes = max_bytes
        self.describe: Callable[[int], str] | None = None  # makes the line with the number of dropped lines
        self.reset()

    def reset(self) -> None:
        """Back to the initial state: nothing waits, nothing was dropped."""
        self._lines: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()  # set when a caller waits for the queued lines
        # Each is written by one side only, so that none needs a lock: `put` may be called in a signal handler.
        self._bytes_put = self._bytes_written = self._num_refused = self._num_failed = 0

    @property
    def num_dropped(self) -> int:
        """Lines so far that will never be written."""
        return self._num_refused + self._num_failed

    def put(self, text: str) -> None:
        """`text`: one line or several, with the line feed at its end."""
        data = text.encode("utf-8", "backslashreplace")
        if self._bytes_put - self._bytes_written + len(data) > self._max_bytes:
            self._num_refused += 1
            return
        self._bytes_put += len(data)
        self._lines.put(data)
        self._start()

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until all that was put is written; False if the reader does not take it in time."""
        if self._thread is None:
            return True
        is_done = threading.Event()
        self._lines.put(is_done)
        self._hurry.set()
        return is_done.wait(timeout_s)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name=f"lines-{self._fd}")
            self._thread.start()

    def _run(self) -> None:
        num_reported = 0
        can_write = True
        while True:
            self._hurry.clear()
            taken = list(self._take())
            for chunk in _chunks(item for item in taken if isinstance(item, bytes)):
                can_write = self._write(chunk)
                self._num_failed += 0 if can_write else len(chunk)
                self._bytes_written += sum(map(len, chunk))
            num = self.num_dropped
            if num > num_reported and can_write and self._lines.empty():
                text = self.describe(num - num_reported) if self.describe is not None else ""
                num_reported = num if self._write([text.encode()]) else num_reported
            for item in taken:
                if isinstance(item, threading.Event):
                    item.set()
            self._hurry.wait(PAUSE_S)

    def _take(self) -> Iterator[bytes | threading.Event]:
        """Wait for lines, then yield all that are there."""
        yield self._lines.get()
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._lines.get_nowait()

    def _write(self, lines: list[bytes]) -> bool:
        rest = memoryview(b"".join(lines))
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another process with the same open file has made it non-blocking
                time.sleep(RETRY_S)
            except OSError:  # the reader has gone, or the disk is full: either may come back
                return False
        return True


def _chunks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines that are written at once: at most PIPE_BUF bytes, so that other processes' lines fall between, not into."""
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        if chunk and size + len(line) > select.PIPE_BUF:
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line)
    if chunk:
        yield chunk
