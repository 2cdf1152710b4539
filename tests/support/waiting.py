"""How tests wait: for a condition, with a deadline and a message. Never by sleeping for long enough."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

POLL_S = 0.005
PATIENCE = float(os.environ.get("PENSTOCK_TEST_PATIENCE", "1"))  # by which every time limit of a test is multiplied
LONG_S = 30.0 * PATIENCE  # no limit is shorter: it ends a test that hangs, and must not end one on a busy machine


async def wait_until(is_true: Callable[[], Any], message: str, timeout_s: float = LONG_S) -> None:
    """Return once `is_true()` is; fail with `message` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s: {message}"
        await asyncio.sleep(POLL_S)


async def wait_until_async(is_true: Callable[[], Awaitable[Any]], message: str, timeout_s: float = LONG_S) -> None:
    """The same for a condition that must be awaited."""
    deadline = time.monotonic() + timeout_s
    while not await is_true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s: {message}"
        await asyncio.sleep(POLL_S)
