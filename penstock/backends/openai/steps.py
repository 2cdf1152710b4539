"""How a whole answer is asked of an upstream: a generator of `Ask`s, one HTTP request each.

It is sent the body of each answer, and returns the result. Pure; knows no engine and no task.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `at_root`: the path is next to the API's (`/tokenize`, where the API is at `/v1`)."""

    path: str
    body: dict[str, Any]
    at_root: bool = False
    method: str = "POST"


Steps = Generator[Ask, bytes, T]
