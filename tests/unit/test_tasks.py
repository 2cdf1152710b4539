"""The results of tasks as tokens, and back: what is not a result is an error of the backend."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BackendError
from penstock.fleet import Capabilities
from penstock.job import Job
from penstock.rich_token import Token
from penstock.tasks import (
    TASKS,
    VERBS,
    Tokenized,
    encode,
    encode_score,
    read_count,
    read_info,
    read_scores,
    read_tokenized,
)
from penstock.wire import decode_job, encode_job

IDS = st.lists(st.integers(0, 2**63 - 1), max_size=5).map(tuple)


def test_every_task_has_a_verb() -> None:
    assert set(VERBS) == set(TASKS)


@given(IDS, st.none() | st.lists(st.text(), max_size=5).map(tuple), st.none() | st.integers(1))
def test_results_survive_their_way(ids: tuple[int, ...], strs: tuple[str, ...] | None, length: int | None) -> None:
    found = read_tokenized([encode(Tokenized(ids, strs, length))])
    assert msgspec.json.decode(found.ids) == list(ids)
    assert msgspec.json.decode(found.strs) == (None if strs is None else list(strs))
    assert (found.max_model_len, found.count) == (length, len(ids))


def test_ids_may_have_blanks_between_them() -> None:
    assert read_tokenized(['{"ids": [ 5, 67 ]}']).count == 2
    assert read_tokenized(['{"ids": [ ]}']).count == 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_scores_survive_their_way(scores: list[float]) -> None:
    assert read_scores([encode_score(score) for score in scores], len(scores)) == scores


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_is_a_finite_number(score: float) -> None:
    with pytest.raises(BackendError):
        encode_score(score)


@pytest.mark.parametrize(
    ("read", "tokens"),
    [
        (read_count, ["many"]),
        (read_count, []),
        (read_count, ["1.5"]),
        (read_tokenized, ["{}"]),
        (read_tokenized, ['{"ids": ["a"]}']),
        (read_tokenized, ['{"ids": [[1], 2]}']),
        (read_tokenized, ['{"ids": [-1]}']),
        (read_tokenized, ['{"ids": 5}']),
        (read_tokenized, ['{"ids": [5], "strs": {}}']),
        (read_tokenized, ["[" * 2000]),
        (read_info, ["[]"]),
        (lambda tokens: read_scores(tokens, 2), ["0.5"]),
        (lambda tokens: read_scores(tokens, 1), ["null"]),
    ],
)
def test_what_is_not_a_result_is_an_error_of_the_backend(
    read: Callable[[list[Token]], object], tokens: list[Token]
) -> None:
    with pytest.raises(BackendError):
        read(tokens)


@given(st.text(max_size=5) | IDS, st.lists(st.text(max_size=5) | IDS, max_size=3).map(tuple))
def test_token_ids_and_tasks_survive_the_wire(
    prompt: str | tuple[int, ...], inputs: tuple[str | tuple[int, ...], ...]
) -> None:
    job = Job(id="g.1", model="m", prompt=prompt, inputs=inputs, task="score", queries=("q",))
    assert decode_job(encode_job(job)) == job
    plain = Job(id="g.1", model="m", prompt=prompt, inputs=inputs)
    assert plain.has_token_ids == any(isinstance(each, tuple) for each in (prompt, *inputs))
    assert not job.has_token_ids


def test_a_job_without_a_task_is_written_as_before() -> None:
    """So that an older worker can read it."""
    job = Job(id="g.1", model="m", prompt="x")
    assert msgspec.json.decode(msgspec.json.encode(job)) == {"id": "g.1", "model": "m", "prompt": "x"}
    assert job.generates
    assert not Job(id="g.1", model="m", inputs=("x",)).generates
    assert not Job(id="g.1", model="m", prompt="x", task="count").generates


def test_the_text_of_token_ids_has_a_word_for_each() -> None:
    assert Job(id="g.1", model="m", prompt=(5, 67)).text == "5 67"
    assert Job(id="g.1", model="m", inputs=("a b", (5, 67))).text == "a b\n5 67"


def test_a_pool_has_the_tasks_that_all_of_its_workers_have() -> None:
    one, two = Capabilities(tasks=("count", "score")), Capabilities(tasks=("score", "tokenize"))
    assert one.shared(two).tasks == ("score",)
    assert one.shared(Capabilities()).tasks == ()
    old = msgspec.json.decode(b'{"accepts":[],"generates":true}', type=Capabilities)  # of an older worker
    assert old.tasks == ()
