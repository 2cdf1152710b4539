"""Scores at upstreams: one request where the engine takes pairs, one for each query where it reranks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends import build_backend
from penstock.backends.openai.engines import ScoreForm
from penstock.backends.openai.failures import UpstreamError
from penstock.backends.openai.scores import score
from penstock.errors import ConfigError
from penstock.event import Usage
from tests.support.asking import ask, claim, done_of, running
from tests.support.upstream import Upstream
from tests.unit.backends.openai.test_tokenizer import drive

VLLM = (
    '{"id":"score-1","object":"list","created":1,"model":"up","data":[{"index":0,"object":"score","score":0.9},'
    '{"index":1,"object":"score","score":0.1}],"usage":{"prompt_tokens":12,"total_tokens":12}}'
)
JINA = (
    '{"model":"up","object":"list","usage":{"prompt_tokens":12,"total_tokens":12},'
    '"results":[{"index":1,"relevance_score":0.9},{"index":0,"relevance_score":-7.5}]}'
)
SGLANG = (
    '[{"score":0.9,"document":"b","index":1,"meta_info":{"prompt_tokens":5}},'
    '{"score":0.1,"document":"a","index":0,"meta_info":{"prompt_tokens":4}}]'
)


@pytest.mark.parametrize(
    ("form", "answer", "asked", "scores", "prompt_tokens"),
    [
        ("score", VLLM, ("/score", {"model": "up", "text_1": "q", "text_2": ["a", "b"]}), [0.9, 0.1], 12),
        ("rerank", JINA, ("/rerank", {"model": "up", "query": "q", "documents": ["a", "b"]}), [-7.5, 0.9], 12),
        ("rerank", SGLANG, ("/rerank", {"model": "up", "query": "q", "documents": ["a", "b"]}), [0.1, 0.9], 9),
    ],
)
def test_one_query_is_one_request(
    form: ScoreForm, answer: str, asked: tuple[str, Any], scores: list[float], prompt_tokens: int
) -> None:
    requests, found = drive(score(form, "up", ("q", "q"), ("a", "b")), answer)
    assert [(one.path, one.body, one.at_root) for one in requests] == [(*asked, False)]
    assert (found.scores, found.prompt_tokens) == (scores, prompt_tokens)


def test_several_queries_are_one_request_or_one_each() -> None:
    requests, _ = drive(score("score", "up", ("p", "q"), ("a", "b")), VLLM)
    assert requests[0].body == {"model": "up", "text_1": ["p", "q"], "text_2": ["a", "b"]}
    one = {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 3}}
    requests, found = drive(score("rerank", "up", ("p", "q"), ("a", "b")), one, one)
    assert [one.body["query"] for one in requests] == ["p", "q"]
    assert (found.scores, found.prompt_tokens) == ([0.5, 0.5], 6)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["index", "score", "data", "results", "usage"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["score", "rerank"]), values)
def test_any_json_is_scores_or_malformed(form: ScoreForm, answer: Any) -> None:
    try:
        _, found = drive(score(form, "up", ("q", "q"), ("a", "b")), json.dumps(answer))
    except UpstreamError as failure:
        reason = failure.reason
    else:
        reason = "malformed"
        assert len(found.scores) == 2
    assert reason == "malformed"


async def test_scores_are_tokens_and_continue_after_a_death() -> None:
    async with Upstream() as up, running(up.url, engine="vllm", task="score") as backend:
        said = await ask(backend, claim(task="score", queries=("q",), inputs=("a", "b", "c")))
        assert said.tokens == ("0.0", "0.125", "0.25")
        rest = await ask(backend, claim(task="score", queries=("q",), inputs=("a", "b", "c"), tokens=("9.0", "8.0")))
        assert rest.tokens == ("9.0", "8.0", "0.0")
        assert up.seen[-1].body["text_2"] == ["c"]
        ended = await ask(backend, claim(task="score", queries=("q",), inputs=("a",), tokens=("9.0",)))
        assert (ended.tokens, done_of(ended).finish_reason) == (("9.0",), "stop")
        assert len(up.seen) == 2
    async with Upstream() as up, running(up.url, engine="llamacpp", task="score") as backend:
        said = await ask(backend, claim(task="score", queries=("p", "q"), inputs=("a", "b")))
        assert (said.tokens, done_of(said).usage) == (("0.0", "0.0"), Usage(14, 0))


def test_scores_need_an_engine_that_has_them() -> None:
    with pytest.raises(ConfigError, match="task=score: the engine of upstream 1"):
        build_backend("openai", {"url": "http://127.0.0.1:1", "task": "score"})
    with pytest.raises(ConfigError, match="task must be generate, embed, score"):
        build_backend("openai", {"url": "http://127.0.0.1:1", "engine": "vllm", "task": "dream"})
