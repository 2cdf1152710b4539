"""The announcements of workers, and a gateway's view of its pool.

Gateways have no models of their own: they serve the models that live workers announce, and refuse, by name, fields that
an announced backend cannot honour. Knows nothing of how this travels.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Capabilities(Struct, frozen=True, kw_only=True):
    """A backend's abilities for one model.

    `accepts`: the optional fields of `Sampling` and the extras that it honours. `continuous`: jobs may join at any
    step, so there is no batch window. `resumes`: it can continue an answer after its first tokens. `generates`,
    `embeds`: whether it makes tokens, and vectors. `max_tokens`: its own limit, None if it has none.
    `tasks`: its other tasks, as `penstock/tasks.py` names them.
    """

    accepts: tuple[str, ...] = ()
    continuous: bool = False
    resumes: bool = False
    generates: bool = True
    embeds: bool = False
    max_tokens: int | None = None
    tasks: tuple[str, ...] = ()

    def shared(self, other: Capabilities) -> Capabilities:
        """The abilities that both have."""
        limits = [one.max_tokens for one in (self, other) if one.max_tokens is not None]
        return Capabilities(
            accepts=tuple(name for name in self.accepts if name in other.accepts),
            continuous=self.continuous and other.continuous,
            resumes=self.resumes and other.resumes,
            generates=self.generates and other.generates,
            embeds=self.embeds and other.embeds,
            max_tokens=min(limits, default=None),
            tasks=tuple(name for name in self.tasks if name in other.tasks),
        )


class Engines(Struct, frozen=True):
    """The engines behind a model, in processes of their own: how many there are, and how many may get a request now."""

    num_up: int
    num: int


MAX_NAMED = 10


def no_engine(models: Sequence[str]) -> list[str]:
    """The reason why these models cannot run; empty for none."""
    if not models:
        return []
    more = f" and {len(models) - MAX_NAMED} more" if len(models) > MAX_NAMED else ""
    return [f"no engine is up for {', '.join(models[:MAX_NAMED])}{more}"]


class WorkerInfo(Struct, frozen=True, kw_only=True):
    """A worker's description of itself, sent when it enlists and whenever it renews its lease.

    `engines`: of the models that run at engines in other processes, as this worker sees them.
    """

    id: str
    models: dict[str, Capabilities]
    num_slots: int
    num_free: int
    host: str = ""
    pid: int = 0
    version: str = ""
    engines: dict[str, Engines] = {}


class Pool(Struct, frozen=True, kw_only=True):
    """A snapshot of the queue and its workers. Times are seconds.

    `num_taken` counts every id that workers ever took; its rate is the drain rate. `is_new`: the store did not know the
    gateway that asked; if that gateway had asked before, the store has lost data. `at`: the store's clock, since 1970.
    """

    depth: int
    workers: tuple[WorkerInfo, ...] = ()
    num_taken: int = 0
    is_new: bool = False
    at: float = 0.0

    @property
    def models(self) -> dict[str, Capabilities]:
        """Every model that a live worker serves, in the order announced, with the abilities that all of them have.

        Any worker may get a request. Workers agree on the names; while a release is rolled out, newer workers may have
        more abilities.
        """
        found: dict[str, Capabilities] = {}
        for worker in self.workers:
            for name, can in worker.models.items():
                known = found.setdefault(name, can)
                if known != can:
                    found[name] = known.shared(can)
        return found

    @property
    def without_engine(self) -> list[str]:
        """The models that cannot run now: every worker that serves one sees all of its engines down. Sorted."""
        can_run = {
            name
            for worker in self.workers
            for name in worker.models
            if (seen := worker.engines.get(name)) is None or seen.num_up > 0
        }
        return sorted({name for worker in self.workers for name in worker.models} - can_run)

    @property
    def engines(self) -> dict[str, Engines]:
        """For each model that runs at engines: as the worker sees them that sees the fewest of them up."""
        found: dict[str, Engines] = {}
        for worker in self.workers:
            for name, seen in worker.engines.items():
                if name not in found or seen.num_up * found[name].num < found[name].num_up * seen.num:
                    found[name] = seen
        return found
