"""The side of a server that takes connections in: what they share. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from typing import Protocol

from uvicorn.server import ServerState

EVICT_AFTER_S = 1.0  # a newer connection may be about to send its first request


class Connected(Protocol):
    """A connection, as far as it is known here."""

    transport: asyncio.Transport


class State(ServerState):
    """What all connections of one server share. `idle`: those without a request, the longest idle first, and since
    when (the loop's clock, seconds).
    """

    def __init__(self) -> None:
        super().__init__()
        self.idle: dict[Connected, float] = {}

    def evict_one(self, now: float) -> bool:
        """Close the connection that has been idle longest, so that those that ask nothing cannot shut others out."""
        oldest = next(iter(self.idle), None)
        if oldest is None or now - self.idle[oldest] < EVICT_AFTER_S:
            return False
        del self.idle[oldest]
        oldest.transport.close()
        return True
