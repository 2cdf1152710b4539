"""The benchmark of the repository: goals judged by rounds, and a page whose figures are those of the newest results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bench import batch_slots, loadgen
from bench.__main__ import gates
from bench.cells import CELLS, GOALS, Goal
from bench.limit import render as render_limit
from bench.report import (
    BEGIN,
    END,
    EXPECTED,
    JOURNAL,
    LIMIT_BEGIN,
    LIMIT_END,
    PAGE,
    RESULTS,
    between,
    judge,
    newest,
    render_journal,
    render_loadgen,
    render_page,
    table,
)

LEAST = Goal("x", "speed", lambda seen: float(seen["cell"]["penstock"]["speed"]), 10, True, 4)
MOST = Goal("y", "time", lambda seen: float(seen["cell"]["penstock"]["time"]), 5, False, unit="ms")
ROUNDS = [{"cell": {"penstock": {"speed": speed, "time": 5.0}}} for speed in (12.0, 3.0, 9.0)]


def test_a_goal_is_judged_by_its_median_and_has_its_spread() -> None:
    least, most = judge(ROUNDS, (LEAST, MOST))
    assert (least["median"], least["least"], least["most"]) == (9.0, 3.0, 12.0)
    assert (least["is_reached"], least["is_through_gate"]) == (False, True)
    assert (most["is_reached"], most["gate"]) == (True, None)


def test_a_goal_that_was_not_measured_is_not_judged() -> None:
    assert judge([{"other": {}}], (LEAST,)) == []


def test_a_gate_that_is_missed_fails(capsys: pytest.CaptureFixture[str]) -> None:
    slow = [{"cell": {"penstock": {"speed": 3.0, "time": 9.0}}}]
    assert gates(judge(slow, (LEAST, MOST))) == 1
    assert capsys.readouterr().out.endswith("0 passed, 1 failed\n")
    assert gates(judge(ROUNDS, (LEAST, MOST))) == 0
    assert capsys.readouterr().out == "1 passed, 0 failed\n"


def test_a_row_shows_whether_it_is_reached() -> None:
    rows = table(judge(ROUNDS, (LEAST, MOST))).splitlines()
    assert rows[2] == "| x | speed | 9× | 3 – 12 | ≥ 10× | **missed** |"
    assert rows[3] == "| y | time | 5 ms | 5 – 5 | ≤ 5 ms | reached |"


def test_gates_are_wider_than_goals() -> None:
    for goal in GOALS:
        if goal.gate is not None:
            assert goal.holds(goal.reach, goal.gate), goal.says
    assert sum(goal.gate is not None for goal in GOALS) >= 8
    assert sum(cell.is_in_ci for cell in CELLS) >= 4


def test_the_pages_show_the_newest_results() -> None:
    journal = JOURNAL.read_text(encoding="utf-8")
    assert BEGIN in journal
    assert END in journal
    found = json.loads(newest().read_text(encoding="utf-8"))
    assert journal == render_journal(found, CELLS), "python -m bench --docs"
    assert PAGE.read_text(encoding="utf-8") == render_page(found), "python -m bench --docs"


def test_the_goals_shown_to_users_are_measured() -> None:
    assert set(EXPECTED) - {goal.says for goal in GOALS} == set()


def test_the_results_of_each_study_are_those_of_its_newest_run() -> None:
    studies = [re.sub(r"-?\d{4}-\d\d-\d\d", "", path.stem) for path in RESULTS.glob("*.json")]
    assert sorted(studies) == sorted(set(studies))


def test_the_page_shows_the_newest_limits_of_the_generator() -> None:
    page = JOURNAL.read_text(encoding="utf-8")
    files = sorted(RESULTS.glob("limit-*.json"))
    if files:
        found = json.loads(files[-1].read_text(encoding="utf-8"))
        assert page == between(page, LIMIT_BEGIN, LIMIT_END, render_limit(found))


def test_the_page_shows_the_newest_results_of_another_generator() -> None:
    page = JOURNAL.read_text(encoding="utf-8")
    files = sorted(RESULTS.glob("loadgen-*.json"))
    if files:
        assert page == render_loadgen(json.loads(files[-1].read_text(encoding="utf-8")))


FOREIGN = """#!{python}
import json, sys
print(json.dumps({{
    "tok_s": 640.0, "req_s": 10.0, "tok_all": 900, "req_all": 15, "ttft_ms": {{"p50": 1.5, "p99": 2.5}},
    "bad": 1, "conn_err": 2, "timeouts": 3, "why": "order", "lg_cpu_frac": 0.25, "command": sys.argv[1:],
}}))
sys.stderr.write(" ".join(sys.argv[1:]))
"""


@pytest.mark.parametrize("is_stream", [True, False])
def test_another_generator_speaks_in_our_words(tmp_path: Path, is_stream: bool) -> None:
    program = tmp_path / "loadgen"
    program.write_text(FOREIGN.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    times = {"measure_s": 1.0, "warmup_s": 0.5}
    found = loadgen.run(str(program), "http://x", concurrency=9, tokens=64, is_stream=is_stream, **times)
    assert found["tokens_per_s"] == 640.0
    assert found["tokens_with_warmup"] == (900 if is_stream else 15 * 64)
    assert (found["requests_per_s"], found["failed"], found["errors"]) == (10.0, 6, {"order": 1})
    assert found["ttft_ms"] == ({"p50": 1.5, "p99": 2.5} if is_stream else {})
    assert found["generator_cpu"] == [0.25]
    cell = next(cell for cell in CELLS if cell.name == ("stream 256" if is_stream else "json 256"))
    seen = {cell.name: {"penstock": found, "naive": {**found, "requests_per_s": 1.0, "tokens_per_s": 64.0}}}
    judged = judge([seen], [goal for goal in GOALS if "c=256, to naive" in goal.says])
    assert [goal["median"] for goal in judged] == [10.0]


def test_another_generator_without_output_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "loadgen"
    program.write_text("#!/bin/sh\necho no such flag >&2\nexit 2\n", encoding="utf-8")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="no such flag"):
        loadgen.run(str(program), "http://x", concurrency=1, tokens=1, is_stream=True, measure_s=1.0, warmup_s=0.0)


@pytest.mark.timeout(60)
def test_the_table_of_the_last_batch_slots_is_the_output_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    batch_slots.main()
    assert capsys.readouterr().out in JOURNAL.read_text(encoding="utf-8")
