"""instructor in its modes: tools, JSON by schema, and two APIs of other forms."""

from __future__ import annotations

import functools

import pytest

from tests.clients.program import PYTHON, Program, outcomes, python_alone

PROGRAM = Program("instructor", alone=("instructor",))
CHECKS = (
    "tools",
    "strict_tools",
    "json_by_schema",
    "tools_over_responses",
    "object_streamed",
    "list_of_objects",
    "tools_over_anthropic",
)


@functools.cache
def _outcomes(url: str) -> dict[str, str | None]:
    return outcomes(python_alone(PROGRAM), PYTHON / "instructor_loop.py")


@pytest.mark.parametrize("check", CHECKS)
def test_an_object(url: str, check: str) -> None:
    assert _outcomes(url)[check] is None
