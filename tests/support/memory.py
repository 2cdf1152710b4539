"""What the memory transport holds, changed from outside: as a Redis does that comes back with less than it had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from penstock.transports.memory import MemoryTransport
from penstock.transports.memory_state import Snapshot

Part = Literal["jobs", "queue", "lists", "gateways", "bound"]


@contextmanager
def changing(store: MemoryTransport) -> Iterator[Snapshot]:
    """What it holds; what is changed there holds from the end of the block on."""
    state = store.snapshot()
    yield state
    store.load(state)


def forget(store: MemoryTransport, *parts: Part) -> None:
    """Nothing is left of these parts."""
    with changing(store) as state:
        for part in parts:
            getattr(state, part).clear()
