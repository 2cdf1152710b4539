"""The batcher against its promises: nothing lost, duplicated, reordered, mixed, oversize, or late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.job import Batch, Claim, Job, Sampling
from penstock.worker.batcher import LAST_BATCH_SLOTS, MAX_LULL_WINDOWS, QUIET_SHARE, Batcher

WINDOW_S = 0.010


def claim(id: str, model: str = "m", max_tokens: int = 8, num_deaths: int = 0) -> Claim:
    job = Job(id=id, model=model, prompt="p", sampling=Sampling(max_tokens=max_tokens))
    return Claim(job, attempt=1, deadline_at=1e9, num_deaths=num_deaths)


def ids(batches: Sequence[Batch]) -> list[list[str]]:
    return [[c.job.id for c in batch.claims] for batch in batches]


def test_a_full_group_goes_at_once_and_its_overflow_starts_the_next() -> None:
    batcher = Batcher(2, WINDOW_S)
    for i in range(5):
        batcher.add(claim(str(i)), 0.0)
    assert ids(batcher.ready(0.0, 4)) == [["0", "1"], ["2", "3"]]
    assert len(batcher) == 1
    assert batcher.next_deadline() == WINDOW_S
    assert ids(batcher.ready(WINDOW_S, 2)) == [["4"]]


def test_a_lone_claim_waits_for_its_window() -> None:
    batcher = Batcher(4, WINDOW_S)
    batcher.add(claim("a"), 1.0)
    assert batcher.next_deadline() == 1.0 + WINDOW_S
    assert batcher.ready(1.0 + WINDOW_S / 2, 1) == []
    assert ids(batcher.ready(1.0 + WINDOW_S, 1)) == [["a"]]
    assert batcher.next_deadline() is None


def test_a_window_closes_early_without_arrivals() -> None:
    batcher = Batcher(8, WINDOW_S, num_batch_slots=2)
    quiet_s = QUIET_SHARE * WINDOW_S
    batcher.add(claim("a"), 0.0)
    assert batcher.next_deadline(2) == quiet_s
    assert batcher.ready(quiet_s * 0.9, 2) == []
    batcher.add(claim("b"), quiet_s * 0.9)
    assert batcher.ready(quiet_s, 2) == [], "another one has come"
    assert ids(batcher.ready(quiet_s * 2.0, 2)) == [["a", "b"]]


def test_where_batch_slots_are_few_a_window_is_whole() -> None:
    batcher = Batcher(8, WINDOW_S, num_batch_slots=6)
    batcher.add(claim("a"), 0.0)
    assert [batcher.next_deadline(free) for free in (5, 4, 3, 2, 1)] == [QUIET_SHARE * WINDOW_S] * 2 + [WINDOW_S] * 3
    assert batcher.ready(WINDOW_S * 0.9, 3) == []
    assert ids(batcher.ready(WINDOW_S * 0.9, 4)) == [["a"]]


@pytest.mark.parametrize("free", [1, 2])
def test_the_last_free_batch_slots_wait_until_arrivals_pause(free: int) -> None:
    batcher = Batcher(100, WINDOW_S, num_batch_slots=4)
    now = 0.0
    for number in range(20):  # a burst that lasts four windows
        now = number * WINDOW_S / 5
        batcher.add(claim(str(number)), now)
        assert batcher.ready(now, free) == [], "more are coming, and batch slots are few"
    assert batcher.next_deadline(free) == now + WINDOW_S
    assert len(batcher.ready(now + WINDOW_S, free)[0]) == 20


def test_the_last_free_batch_slot_does_not_wait_without_end_for_a_pause() -> None:
    batcher = Batcher(1000, WINDOW_S, num_batch_slots=4)
    number = 0
    while not (batches := batcher.ready(now := number * WINDOW_S / 5, 1)):
        batcher.add(claim(str(number)), now)
        number += 1
    assert now == pytest.approx(MAX_LULL_WINDOWS * WINDOW_S)
    assert len(batches[0]) == number


def test_the_last_free_batch_slot_goes_to_a_full_batch_at_once() -> None:
    batcher = Batcher(2, WINDOW_S, num_batch_slots=4)
    batcher.add(claim("a"), 0.0)
    batcher.add(claim("b"), WINDOW_S / 2)
    assert ids(batcher.ready(WINDOW_S / 2, 1)) == [["a", "b"]]


def test_steady_arrivals_cannot_stretch_a_window() -> None:
    batcher = Batcher(100, WINDOW_S, num_batch_slots=2)
    for number in range(20):
        batcher.add(claim(str(number)), number * WINDOW_S / 10)
    assert batcher.next_deadline(2) == WINDOW_S
    assert len(batcher.ready(WINDOW_S, 2)[0]) == 20


def test_a_group_keeps_filling_while_every_batch_slot_is_busy() -> None:
    batcher = Batcher(4, WINDOW_S)
    batcher.add(claim("a"), 0.0)
    assert batcher.ready(1.0, 0) == []
    batcher.add(claim("b"), 1.0)
    assert ids(batcher.ready(2.0, 1)) == [["a", "b"]]


def test_the_oldest_group_goes_first_even_when_a_younger_one_is_full() -> None:
    batcher = Batcher(2, WINDOW_S)
    batcher.add(claim("a", max_tokens=1), 0.0)
    batcher.add(claim("b", max_tokens=2), 0.001)
    batcher.add(claim("c", max_tokens=2), 0.001)
    assert ids(batcher.ready(0.002, 1)) == [["b", "c"]], "the older one's window has not passed"
    batcher.add(claim("d", max_tokens=2), 0.003)
    batcher.add(claim("e", max_tokens=2), 0.003)
    assert ids(batcher.ready(WINDOW_S, 1)) == [["a"]]
    assert ids(batcher.ready(WINDOW_S, 1)) == [["d", "e"]]


def test_suspects_share_batches_only_with_suspects_and_repeated_ones_run_alone() -> None:
    batcher = Batcher(4, WINDOW_S)
    for i, num_deaths in enumerate((0, 1, 2, 2, 1, 0)):
        batcher.add(claim(str(i), num_deaths=num_deaths), 0.0)
    assert ids(batcher.ready(0.0, 9)) == [["2"], ["3"]], "alone means full"
    assert ids(batcher.ready(WINDOW_S, 9)) == [["0", "5"], ["1", "4"]]


def test_a_window_of_zero_seals_at_once_and_a_continuous_model_needs_no_batch_slot() -> None:
    batcher = Batcher(4, WINDOW_S, windows={"eager": 0.0}, continuous=["joining"])
    batcher.add(claim("a", "eager"), 0.0)
    batcher.add(claim("b", "joining"), 0.0)
    batcher.add(claim("c", "joining"), 0.0)
    assert ids(batcher.ready(0.0, 0)) == [["b", "c"]]
    assert ids(batcher.ready(0.0, 1)) == [["a"]]


def test_discard_and_drain_take_claims_out() -> None:
    batcher = Batcher(4, WINDOW_S)
    for i, max_tokens in enumerate((1, 2, 1)):
        batcher.add(claim(str(i), max_tokens=max_tokens), float(i))
    taken = batcher.discard("0")
    assert taken is not None
    assert taken.job.id == "0"
    assert batcher.discard("0") is None
    batcher.add(claim("3", max_tokens=2), 3.0)
    assert [c.job.id for c in batcher.drain()] == ["1", "2", "3"]
    assert len(batcher) == 0
    assert batcher.ready(9.0, 9) == []


def test_a_job_waits_once() -> None:
    batcher = Batcher(4, WINDOW_S)
    batcher.add(claim("a"), 0.0)
    with pytest.raises(ValueError, match="already waiting"):
        batcher.add(claim("a"), 0.0)


@dataclass(frozen=True)
class Step:
    """After `pause` seconds: add claims of these keys, discard the n-th waiting one, then start what is ready."""

    pause: float
    keys: tuple[tuple[str, int, int], ...]
    discard: int | None
    free: int


_key = st.tuples(st.sampled_from("ab"), st.sampled_from((1, 2)), st.sampled_from((0, 0, 0, 1, 2)))
_steps = st.lists(
    st.builds(
        Step,
        pause=st.floats(0, 2 * WINDOW_S),
        keys=st.lists(_key, max_size=6).map(tuple),
        discard=st.none() | st.integers(0, 20),
        free=st.integers(0, 3),
    ),
    max_size=40,
)


@given(_steps, st.integers(1, 4), st.integers(0, 4))
def test_whatever_comes(steps: list[Step], max_batch_size: int, num_batch_slots: int) -> None:
    batcher = Batcher(max_batch_size, WINDOW_S, num_batch_slots=num_batch_slots)
    now, added = 0.0, dict[str, tuple[Claim, float]]()
    started: list[str] = []
    discarded: list[str] = []
    groups: dict[object, list[str]] = {}
    for step in steps:
        now += step.pause
        for model, max_tokens, num_deaths in step.keys:
            one = claim(str(len(added)), model, max_tokens, num_deaths)
            added[one.job.id] = (one, now)
            groups.setdefault((one.job.batch_key, num_deaths), []).append(one.job.id)
            batcher.add(one, now)
        waiting = [id for id in added if id not in started and id not in discarded]
        if step.discard is not None and step.discard < len(waiting):
            assert batcher.discard(waiting[step.discard]) is added[waiting[step.discard]][0]
            discarded.append(waiting[step.discard])
        deadline = batcher.next_deadline(step.free)
        batches = batcher.ready(now, step.free)
        assert len(batches) <= step.free
        assert bool(batches) == (step.free > 0 and deadline is not None and deadline <= now), "the deadline tells"
        for batch in batches:
            assert 1 <= len(batch) <= max_batch_size
            assert len({(c.job.batch_key, c.num_deaths) for c in batch.claims}) == 1, "keys never mixed"
            assert len(batch) == 1 or batch.claims[0].num_deaths < 2
            started += [c.job.id for c in batch.claims]
        if len(batches) < step.free:
            left = step.free - len(batches)
            is_lull = left <= LAST_BATCH_SLOTS and 2 * left <= num_batch_slots
            patience_s = MAX_LULL_WINDOWS * WINDOW_S if is_lull else WINDOW_S
            late = [id for id in added if id not in started + discarded and added[id][1] + patience_s <= now]
            assert not late, "no wait beyond the window while batch slots are free, nor beyond ten while few are"
    rest = [c.job.id for c in batcher.drain()]
    assert rest == sorted(rest, key=int)
    assert sorted(started + discarded + rest, key=int) == list(added), "nothing lost, nothing twice"
    for members in groups.values():
        order = [id for id in started + rest if id in members]
        assert order == [id for id in members if id not in discarded], "nothing reordered within a group"
