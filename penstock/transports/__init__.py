"""The family of transports: how jobs go down and events come up. `base.py` is the promise.

Only this package interprets the settings of the store: the rest of the program asks for a transport and names none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from penstock.transports.base import Transport

if TYPE_CHECKING:
    from penstock.metrics import Metrics
    from penstock.settings import Settings

__all__ = ["Transport", "make_transport", "preload", "queue_name"]


def make_transport(settings: Settings, metrics: Metrics | None = None) -> Transport:
    """The transport that the settings ask for: Redis if there is a URL, else memory."""
    if settings.redis_url is None:
        from penstock.transports.memory import MemoryTransport

        return MemoryTransport(retention_s=settings.retention_s, max_bytes=settings.max_memory_bytes)
    from penstock.transports.redis import RedisTransport

    return RedisTransport(
        settings.redis_url.get_secret_value(),
        pool=settings.pool,
        retention_s=settings.retention_s,
        resume_window_s=settings.resume_window_s,
        metrics=metrics,
    )


def preload(settings: Settings) -> None:
    """Import what `make_transport` needs, which takes up to a quarter of a second."""
    importlib.import_module(f"{__name__}.{'memory' if settings.redis_url is None else 'redis'}")


def queue_name(settings: Settings) -> str:
    """The name of the pool's queue in Redis, for people."""
    from penstock.transports.redis.keys import PoolKeys

    return PoolKeys(settings.pool).queue
