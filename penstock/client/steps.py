"""The steps that the core asks a shell to carry out.

A call is a generator of steps. A shell carries each out and sends its result back:

    Send     → `ResponseHead`, or `Broken`         begins a request; ends the one before
    Read     → bytes (b"" at the end), or `Broken`
    Rest     → the bytes of the whole body, or `Broken`
    Pause    → None
    Now      → seconds of a monotonic clock
    Give     → None; its event is for the user

The generator's return value is the call's result; what it raises is the call's error.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Send:
    """`read_s`: how long to wait for the next bytes, at most."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    read_s: float


@dataclass(slots=True, frozen=True)
class ResponseHead:
    status: int
    headers: Mapping[str, str]  # names in lower case


@dataclass(slots=True, frozen=True)
class Broken:
    """The connection broke or was silent too long; or, unless `was_connected`, it was not made."""

    why: str
    was_connected: bool = True


@dataclass(slots=True, frozen=True)
class Read:
    pass


@dataclass(slots=True, frozen=True)
class Rest:
    pass


@dataclass(slots=True, frozen=True)
class Pause:
    seconds: float


@dataclass(slots=True, frozen=True)
class Now:
    pass


@dataclass(slots=True, frozen=True)
class Give:
    text: str


Step = Send | Read | Rest | Pause | Now | Give
Steps = Generator[Step, Any, T]
