"""How late the event loop wakes a timer: the time for which it was blocked."""

from __future__ import annotations

import asyncio
import time

from penstock.metrics.registry import Metrics

LAG_EVERY_S = 0.5


async def watch_lag(metrics: Metrics, every_s: float = LAG_EVERY_S) -> None:
    """Measure until cancelled."""
    try:
        while True:
            asked_at = time.monotonic()
            await asyncio.sleep(every_s)
            metrics.loop_lag(max(0.0, time.monotonic() - asked_at - every_s))
    finally:
        metrics.flush()
