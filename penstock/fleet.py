"""Who serves what: what workers announce, and what a gateway learns from one look at its pool.

Gateways have no models of their own: they serve what live workers announce, and refuse with a field's name what the
announced backend cannot honour. Knows nothing of how this travels.
"""

from __future__ import annotations

from msgspec import Struct


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a backend can do for one model.

    `accepts`: the optional fields of `Sampling` that it honours. `continuous`: jobs may join at any step, so there is
    no window to wait for. `resumes`: it continues after given tokens. `generates`, `embeds`: which of the two it does.
    `max_tokens`: its own limit, None for none.
    """

    accepts: tuple[str, ...] = ()
    continuous: bool = False
    resumes: bool = False
    generates: bool = True
    embeds: bool = False
    max_tokens: int | None = None


class WorkerInfo(Struct, frozen=True, kw_only=True):
    """What a worker says of itself when it enlists and whenever it renews its lease."""

    id: str
    models: dict[str, Capabilities]
    num_slots: int
    num_free: int
    host: str = ""
    pid: int = 0
    version: str = ""


class Pool(Struct, frozen=True, kw_only=True):
    """One look at the queue and those who serve it. Times are seconds.

    `num_taken` counts every id that workers ever took; its rate is the drain rate. `dead_gateways` have let their
    lease lapse; what they own may have no reader.
    """

    depth: int
    workers: tuple[WorkerInfo, ...] = ()
    num_taken: int = 0
    dead_gateways: tuple[str, ...] = ()

    @property
    def models(self) -> dict[str, Capabilities]:
        """Every model that some live worker serves, in the order announced. Workers of one pool agree on it."""
        return {name: can for worker in self.workers for name, can in worker.models.items()}
