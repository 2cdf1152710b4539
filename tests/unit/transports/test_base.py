"""The finding about engines, which every store's doctor shares."""

from __future__ import annotations

import pytest

from penstock.fleet import Capabilities, Engines, WorkerInfo
from penstock.transports.base import engines_finding


def _worker(engines: dict[str, Engines]) -> WorkerInfo:
    models = dict.fromkeys("ab", Capabilities())
    return WorkerInfo(id="w", models=models, num_slots=1, num_free=1, engines=engines)


@pytest.mark.parametrize(
    ("seen", "level", "value", "advice"),
    [
        ([{"a": (2, 2), "b": (1, 1)}], "ok", "a 2 of 2 up, b 1 of 1 up", ""),
        ([{"a": (1, 2)}], "warning", "a 1 of 2 up", "The others"),
        ([{"a": (2, 2)}, {"a": (0, 2)}], "warning", "a 0 of 2 up", "The others"),
        ([{"a": (0, 2), "b": (1, 1)}], "error", "a 0 of 2 up, b 1 of 1 up", "a cannot run."),
    ],
)
def test_the_worst_view_of_each_models_engines(
    seen: list[dict[str, tuple[int, int]]], level: str, value: str, advice: str
) -> None:
    workers = [_worker({name: Engines(*counts) for name, counts in one.items()}) for one in seen]
    finding = engines_finding(workers)
    assert finding is not None
    assert (finding.level, finding.value) == (level, value)
    assert finding.advice.startswith(advice)
    assert bool(finding.advice) == (level != "ok")


def test_without_engines_there_is_nothing_to_find() -> None:
    assert engines_finding([]) is None
    assert engines_finding([_worker({})]) is None
