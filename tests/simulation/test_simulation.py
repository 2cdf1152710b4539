"""Seeds: some that are always the same, some that never are; the same log for the same seed; and proof of sight."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.plan import KINDS, draw
from tests.simulation.run import simulate

NUM_FIRST = 20
NUM_FIXED = 160
NUM_RANDOM = 80
MAX_SEEDS = 800
ROOT = Path(__file__).resolve().parents[2]


def _check(seeds: range) -> None:
    for seed in seeds:
        outcome = simulate(seed)
        assert outcome.violation is None, (
            f"seed {seed}: {outcome.violation}\nreplay it with: python -m tests.simulation --seed {seed} -v"
        )


def test_the_first_seeds() -> None:
    _check(range(NUM_FIRST))


@pytest.mark.long
@pytest.mark.timeout(120)
def test_the_usual_seeds() -> None:
    _check(range(NUM_FIRST, NUM_FIXED))


@pytest.mark.long
@pytest.mark.timeout(120)
def test_fresh_seeds() -> None:
    """Drawn by `random`, which pytest-randomly seeds: `--randomly-seed` draws the same again."""
    first = random.randrange(1_000_000, 1_000_000_000)
    _check(range(first, first + NUM_RANDOM))


def test_every_kind_of_fault_is_drawn() -> None:
    plans = [draw(seed) for seed in range(NUM_FIXED)]
    assert {event.kind for plan in plans for event in plan.events} == set(KINDS)
    assert any(not plan.events for plan in plans)


def test_a_run_reports_the_events_of_its_clients() -> None:
    outcome = simulate(1)
    assert sum(outcome.ends.values()) == len(draw(1).asks)
    assert outcome.ends["ended"] > 0
    assert any("submit" in line for line in outcome.lines())


def digest(seeds: range) -> str:
    """Of everything that happened in these seeds."""
    lines = "\n".join(line for seed in seeds for line in simulate(seed).lines())
    return hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.timeout(60)
def test_a_seed_gives_the_same_run_everywhere() -> None:
    """Another process, with other hashes of strings and other addresses of objects."""
    program = "from tests.simulation.test_simulation import digest; print(digest(range(40, 60)))"
    other = subprocess.run(
        [sys.executable, "-c", f"{program}  # noqa: T201"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert other.stdout.strip() == digest(range(40, 60))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("mutation", "seed"), MUTATIONS, ids=[mutation.__name__ for mutation, _ in MUTATIONS])
def test_a_rule_that_is_taken_out_is_missed(mutation: Mutation, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed` is one that showed it once; where what a seed means has changed since, others are tried."""
    mutation(monkeypatch)
    assert any(simulate(number).violation for number in (seed, *range(MAX_SEEDS))), (mutation.__doc__, seed)
