"""The scenarios by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.run import Run, Target

Play = Callable[[Run], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`seconds`: how long it goes on in CI; a long run gives all of them the same share of its time."""

    name: str
    says: str
    play: Play
    target: Target
    seconds: float


SCENARIOS: dict[str, Scenario] = {}


def scenario(target: Target, seconds: float) -> Callable[[Play], Play]:
    """Register a function under its own name; its docstring is what `--list` says."""

    def register(play: Play) -> Play:
        name = getattr(play, "__name__", "")
        says = (play.__doc__ or "").strip().partition("\n")[0]
        SCENARIOS[name] = Scenario(name, says, play, target, seconds)
        return play

    return register
