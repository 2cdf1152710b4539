"""What a pool makes of its workers' announcements."""

from __future__ import annotations

import pytest

from penstock.fleet import MAX_NAMED, Capabilities, Engines, Pool, WorkerInfo, no_engine
from penstock.wire import decode_json, encode_json

UP, HALF, DOWN = Engines(2, 2), Engines(1, 2), Engines(0, 2)


def _pool(*seen: dict[str, Engines], models: str = "a b") -> Pool:
    can = dict.fromkeys(models.split(), Capabilities())
    workers = [WorkerInfo(id=str(i), models=can, num_slots=1, num_free=1, engines=one) for i, one in enumerate(seen)]
    return Pool(depth=0, workers=tuple(workers))


@pytest.mark.parametrize(
    ("pool", "without", "engines"),
    [
        (_pool(), [], {}),
        (_pool({}), [], {}),
        (_pool({"a": UP}), [], {"a": UP}),
        (_pool({"a": HALF}), [], {"a": HALF}),
        (_pool({"a": DOWN}), ["a"], {"a": DOWN}),
        (_pool({"b": DOWN, "a": DOWN}), ["a", "b"], {"a": DOWN, "b": DOWN}),
        (_pool({"a": DOWN}, {"a": HALF}), [], {"a": DOWN}),
        (_pool({"a": DOWN}, {}), [], {"a": DOWN}),
        (_pool({"a": UP}, {"a": Engines(1, 1)}, {"a": Engines(3, 4)}), [], {"a": Engines(3, 4)}),
    ],
)
def test_a_model_is_without_engine_when_every_worker_sees_all_of_them_down(
    pool: Pool, without: list[str], engines: dict[str, Engines]
) -> None:
    assert (pool.without_engine, pool.engines) == (without, engines)


def test_many_models_are_a_number() -> None:
    assert no_engine([]) == []
    assert no_engine(["a", "b"]) == ["no engine is up for a, b"]
    (many,) = no_engine([f"m{i}" for i in range(MAX_NAMED + 3)])
    assert many.endswith(f", m{MAX_NAMED - 1} and 3 more")


def test_a_worker_of_an_older_release_announces_no_engines() -> None:
    info = decode_json(b'{"id":"w","models":{"a":{}},"num_slots":1,"num_free":1}', WorkerInfo)
    assert info.engines == {}
    (worker,) = _pool({"a": HALF}).workers
    assert decode_json(encode_json(worker), WorkerInfo) == worker
