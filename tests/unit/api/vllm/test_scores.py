"""Scores and rerank, the pure part: bodies to drafts, scores to answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.fields import without_refused
from penstock.api.intake import Draft
from penstock.api.vllm.scores import (
    PAIRS,
    REFUSED,
    RerankBody,
    ScoreBody,
    rerank_draft,
    reranked,
    score_draft,
    scored,
)
from penstock.errors import InvalidRequest
from penstock.event import Done, Usage
from penstock.http.body_json import validate

END = Done("g.1", 1, 2, finish_reason="stop", usage=Usage(12, 0))


def _score(**data: Any) -> Draft:
    return score_draft(validate(ScoreBody, without_refused(data, REFUSED)))


def _rerank(**data: Any) -> RerankBody:
    return validate(RerankBody, without_refused({"query": "q", "documents": ["a", "b", "c"]} | data, REFUSED))


def _refused(**data: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        _score(**data)
    return caught.value.param


@pytest.mark.parametrize("pair", PAIRS)
def test_each_pair_of_names_means_the_same(pair: tuple[str, str]) -> None:
    draft = _score(**{pair[0]: "q", pair[1]: ["a", "b"]}, model="m", user="u", timeout_s=3)
    assert (draft.task, draft.queries, draft.inputs) == ("score", ("q",), ("a", "b"))
    assert (draft.model, draft.user, draft.timeout_s) == ("m", "u", 3)


def test_one_text_pairs_with_many_on_either_side() -> None:
    assert _score(text_1="q", text_2="a").inputs == ("a",)
    many = _score(text_1=["p", "q"], text_2="a")
    assert (many.queries, many.inputs) == (("p", "q"), ("a", "a"))
    assert _score(text_1=["p", "q"], text_2=["a", "b"]).queries == ("p", "q")


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "a"}, "text_1"),
        ({"text_1": "a", "documents": "b"}, "text_1"),
        ({"text_1": "a", "text_2": "b", "items": "c"}, "text_1"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ({"queries": ["a", "b"], "items": ["a", "b", "c"]}, "items"),
        ({"text_1": "a", "text_2": []}, "text_2"),
        ({"text_1": "a", "text_2": [""]}, "text_2.0"),
        ({"text_1": "a", "text_2": ["b"] * 1001}, "text_2"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_texts_that_do_not_pair_are_refused(data: dict[str, Any], param: str) -> None:
    assert _refused(**data) == param


def test_documents_may_be_objects() -> None:
    draft = rerank_draft(_rerank(documents=["a", {"text": "b"}]))
    assert (draft.task, draft.queries, draft.inputs) == ("score", ("q",), ("a", "b"))


def test_a_score_has_its_place() -> None:
    assert scored([0.5, -1.0], END, "g.1", "m", 7) == {
        "id": "score-g.1",
        "object": "list",
        "created": 7,
        "model": "m",
        "data": [{"index": 0, "object": "score", "score": 0.5}, {"index": 1, "object": "score", "score": -1.0}],
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    }


def test_the_nearest_documents_come_first() -> None:
    answer = reranked([0.1, 0.9, 0.1], END, "g.1", "m", _rerank(top_n=2))
    assert answer["results"] == [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
    ]
    assert (answer["id"], answer["model"]) == ("rerank-g.1", "m")
    bare = reranked([0.1, 0.9, 0.1], END, "g.1", "m", _rerank(return_documents=False))
    assert bare["results"][0] == {"index": 1, "relevance_score": 0.9}


@given(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.integers(0, 5))
def test_a_rerank_is_sorted_and_of_the_length_asked_for(scores: list[float], top_n: int) -> None:
    results = reranked(scores, END, "g.1", "m", _rerank(top_n=top_n))["results"]
    assert len(results) == (min(top_n, 3) or 3)
    found = [result["relevance_score"] for result in results]
    assert found == sorted(scores, reverse=True)[: len(results)]
    assert [scores[result["index"]] for result in results] == found
