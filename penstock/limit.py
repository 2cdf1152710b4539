"""A time limit for repeated waits: a cheap `asyncio.timeout` for code that runs for every request or token.

On Python 3.11 an `asyncio.timeout` costs some 5 us, a tenth of the time for a request or token. A `Limit` costs one
timer for all of its blocks. Pure asyncio; knows nothing of what waits.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType


class Limit:
    """`with limit: await …` raises `TimeoutError` if the limit (monotonic seconds) passes meanwhile.

    It applies only inside a `with` block: between two blocks `until` may set another limit. Call `close()` to release
    the timer.
    """

    __slots__ = ("_is_over", "_loop", "_num_cancels", "_task", "_timer", "_until")

    def __init__(self, until: float) -> None:
        self._task: asyncio.Task[object] | None = None
        self._loop = asyncio.get_running_loop()
        self._until = until
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self._num_cancels = 0

    @property
    def until(self) -> float:
        return self._until

    @until.setter
    def until(self, until: float) -> None:
        """Set the limit. A later one costs nothing: the timer is set again when it fires."""
        if until < self._until:
            self.close()
        self._until = until

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None, "only a task can be cut off"
        self._num_cancels = task.cancelling()
        if self._timer is None:
            self._set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None  # see "No cycles": task → frame → limit → task
        if self._is_over and task is not None:
            self._is_over = False
            if task.uncancel() <= self._num_cancels and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _set(self) -> None:
        self._timer = self._loop.call_later(max(0.0, self._until - time.monotonic()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        if time.monotonic() < self._until:
            self._set()
        elif self._task is not None:  # else the next block sets it again
            self._is_over = True
            self._task.cancel()
