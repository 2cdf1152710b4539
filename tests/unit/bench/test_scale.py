"""The measurement of scale, as far as it is pure: costs from cells, tables, the picture, and a page that is fresh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest

from bench.curves import render_svg
from bench.probe import tree
from bench.report import PAGE, RESULTS, between
from bench.scale import FULL, QUICK, step_ms_of
from bench.scale_report import BEGIN, END, PICTURE, cost_table, costs_of, draw, grid_table, held_table, render
from penstock.planner.costs import Costs


def _held(streams: int, gateway_us: float, kept: float | None = 116.0, tokens_each: float = 50.0) -> dict[str, Any]:
    return {
        "streams": streams,
        "step_ms": step_ms_of(streams),
        "tokens_per_s": 15_000.0,
        "us_per_token": {"gateway": gateway_us, "worker": 20.0, "redis": 5.0},
        "cores": {"gateway": 0.6, "worker": 0.3, "redis": 0.07},
        "foreign_cores": 0.02,
        "kb_per_stream": {"gateway": 16.0, "worker": 8.0, "redis": 12.0},
        "redis_bytes_per_token": kept,
        "redis_bytes_per_stream": None if kept is None else 8000.0,
        "tokens_each": tokens_each,
        "redis_in_bytes_per_token": 500.0,
        "redis_out_bytes_per_token": 220.0,
    }


CELL = {
    "tokens_per_s": 100_000.0, "requests_per_s": 1600.0, "failed": 0, "generator_cpu": [0.4], "foreign_cores": 0.01,
    "us_per_token": {"gateway": 250.0, "worker": 150.0, "redis": 90.0},
}  # fmt: skip
FOUND: dict[str, Any] = {
    "about": {
        "date": "2026-01-02", "command": "python -m bench.scale", "cpu": "cpu", "cores": 2, "server": "Redis",
        "measure_s": 4.0, "system": "Linux", "python": "3.11", "packages": {"penstock": "0.1.0"},
    },
    "held": [_held(1, 400.0), _held(100, 60.0, tokens_each=700.0), _held(1000, 70.0, 80.0), _held(5000, 65.0, 20.0)],
    "grid": [{"gateways": 2, "workers": 1, **CELL}],
    "requests": CELL,
    "redis_connections": {"gateway": 2, "worker": 4},
    "idle_mb": {"gateway": 60.0, "worker": 90.0, "redis": 10.0},
    "client_bytes_per_token": 150.0,
}  # fmt: skip


def test_costs_are_of_many_streams_and_the_dearest_of_them() -> None:
    costs = msgspec.convert(costs_of(FOUND), Costs)
    assert costs.gateway.us_per_token == 70.0
    assert costs.gateway.us_per_request == 180.0  # what an answer of one token costs besides its token
    assert costs.about.streams == [100, 1000, 5000]
    assert costs.redis.bytes_per_token == 116.0  # of the longest streams
    assert costs.redis.bytes_per_request == 8000 - 50 * 116


def test_a_cost_that_was_not_measured_is_missing() -> None:
    costs = msgspec.convert(costs_of({**FOUND, "held": [_held(10, 90.0, None)]}), Costs)
    assert costs.redis.bytes_per_token is None
    assert costs.about.streams == [10]


def test_tables_have_a_row_for_each_cell() -> None:
    held = held_table(FOUND["held"]).splitlines()
    assert held[2] == "| 1 | 5 ms | 15,000 | 400.0 us | 20.0 us | 5.0 us | – | – | – |"
    assert held[4] == "| 1,000 | 67 ms | 15,000 | 70.0 us | 20.0 us | 5.0 us | 16.0 kB | 8.0 kB | 12.0 kB |"
    failing = [{**FOUND["grid"][0], "failed": 3}]
    assert "| 2 | 1 | 100,000 (3 failed) | 250.0 us |" in grid_table(failing)
    assert "| 70.0 us | 20.0 us | 5.0 us |" in cost_table(costs_of(FOUND))
    assert len({row.count("|") for row in held}) == 1
    assert len({row.count("|") for row in grid_table(FOUND["grid"]).splitlines()}) == 1


def test_the_section_names_its_source() -> None:
    text = render(FOUND)
    for words in ("2026-01-02", "python -m bench.scale", "2 cores of cpu", "116 bytes a token", "img/scale.svg"):
        assert words in text
    assert "bytes a token and" not in render({**FOUND, "held": [_held(1000, 90.0, None)]})


def test_the_picture_is_an_svg_with_every_curve_inside_it() -> None:
    root = ET.fromstring(draw(FOUND))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert [len(line.attrib["points"].split()) for line in root.iter(f"{space}polyline")] == [4, 4, 4]
    names = {text.text for text in root.iter(f"{space}text")}
    assert {"gateway", "worker", "Redis"} <= names
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for dot in root.iter(f"{space}circle"):
        assert 0 < float(dot.attrib["cx"]) < width
        assert 0 < float(dot.attrib["cy"]) < height


@pytest.mark.parametrize("curves", [{}, {"a": []}, {"a": [(1.0, 0.0)]}, {"a": [(0.0, 1.0)]}])
def test_a_value_without_a_logarithm_is_not_drawn(curves: dict[str, list[tuple[float, float]]]) -> None:
    with pytest.raises(ValueError, match="logarithm"):
        render_svg(curves, "", "", "")


def test_a_single_point_and_names_on_one_another_are_drawn() -> None:
    root = ET.fromstring(render_svg({"a<b": [(10.0, 5.0)], "c": [(10.0, 5.0)]}, "t", "x", "y"))
    ends = [float(text.attrib["y"]) for text in root.iter() if text.text in ("a<b", "c")]
    assert len(ends) == 2
    assert abs(ends[0] - ends[1]) >= 14


def test_the_pace_keeps_all_streams_together_within_a_machines_limit() -> None:
    for streams in (*FULL.streams, *QUICK.streams):
        assert step_ms_of(streams) >= 5.0
        assert streams * 1000 / step_ms_of(streams) <= 15_001


def test_a_tree_has_the_children_of_a_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = list(tree(os.getpid()))
        assert found[0] == os.getpid()
        assert child.pid in found
    finally:
        child.communicate(b"\n")


def test_the_page_shows_the_newest_measurement() -> None:
    page = PAGE.read_text(encoding="utf-8")
    files = sorted(RESULTS.glob("scale-*.json"))
    if not files:
        assert BEGIN + END in page
        return
    found = json.loads(files[-1].read_text(encoding="utf-8"))
    assert page == between(page, BEGIN, END, render(found))
    assert PICTURE.read_text(encoding="utf-8") == draw(found)
