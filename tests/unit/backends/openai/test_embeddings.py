"""Embeddings at upstreams: all inputs of a job in one request, and an answer that is not taken on trust."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends import base
from penstock.backends.base import Embedded
from penstock.backends.openai import embeddings
from penstock.backends.openai.failures import UpstreamError
from penstock.event import Usage
from penstock.job import Job
from penstock.rich_token import RichToken, Token, decode_vector
from tests.support.asking import Watch, ask, claim, done_of, failed_of, running
from tests.support.upstream import Upstream


def read(answer: bytes, num: int) -> Embedded | str:
    """What it holds, or the reason why that is nothing."""
    try:
        return embeddings.read(answer, num)
    except UpstreamError as failure:
        return failure.reason


def vectors_of(tokens: tuple[Token, ...]) -> list[list[float]]:
    return [list(decode_vector(token.embedding)) for token in tokens if isinstance(token, RichToken)]


async def test_all_inputs_in_one_request_tried_elsewhere_like_any_other() -> None:
    watch = Watch()
    async with (
        Upstream("status=503") as bad,
        Upstream() as good,
        running(f"{bad.url}+{good.url}", watch, task="embed") as backend,
    ):
        said = await ask(backend, claim(inputs=("a", "bcd", "ef")))
        assert vectors_of(said.tokens) == [[1.0, 0.0], [3.0, 1.0], [2.0, 2.0]]
        assert done_of(said).usage == Usage(3, 0)
        assert good.seen[0].body == {"model": "m", "input": ["a", "bcd", "ef"], "encoding_format": "float"}
        bad.mood = "ok"
        rest = await ask(backend, claim(tokens=said.tokens[:1], inputs=("a", "bcd", "ef")))
        assert [vector[0] for vector in vectors_of(rest.tokens)] == [1, 3, 2]
        short = await ask(backend, claim(inputs=("a", "b"), dimensions=1))
        assert vectors_of(short.tokens) == [[1.0], [1.0]]
    assert watch.outcomes() == ["server_error", "ok", "ok", "ok"]


async def test_many_inputs_travel_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "EMBEDDED_AT_ONCE", 2)
    inputs = ("a", "bcd", "ef", "g", "hi")
    async with Upstream() as up, running(up.url, task="embed") as backend:
        said = await ask(backend, claim(inputs=inputs))
        assert [vector[0] for vector in vectors_of(said.tokens)] == [1, 3, 2, 1, 2]
        assert [one.body["input"] for one in up.seen] == [["a", "bcd"], ["ef", "g"], ["hi"]]
        assert done_of(said).usage == Usage(5, 0)


async def test_too_few_are_an_error_and_are_tried_again() -> None:
    async with Upstream("wrong_json_after=1") as up, running(up.url, task="embed", tries="2") as backend:
        assert failed_of(await ask(backend, claim(inputs=("a", "b")))).code == "backend_error"
    assert len(up.seen) == 2


async def test_token_ids_are_passed_on_where_the_engine_takes_them() -> None:
    async with Upstream() as up, running(up.url, task="embed", engine="vllm") as backend:
        assert "token_ids" in backend.capabilities.accepts
        said = await ask(backend, claim(inputs=((5, 67), (8,))))
        assert vectors_of(said.tokens) == [[2.0, 0.0], [1.0, 1.0]]
        assert up.seen[0].body["input"] == [[5, 67], [8]]


async def test_vectors_that_lack_only_their_end_are_not_asked_for_again() -> None:
    async with Upstream() as up, running(up.url, task="embed") as backend:
        first = await ask(backend, claim(inputs=("a",)))
        again = await ask(backend, claim(inputs=("a",), tokens=first.tokens))
        assert again.tokens == first.tokens
        assert done_of(again).finish_reason == "stop"
        assert len(up.seen) == 1


def test_the_body_of_a_request() -> None:
    job = Job(id="j", model="m", inputs=("a",), user="u")
    body = {"model": "up", "input": ["a"], "encoding_format": "float", "user": "u"}
    assert embeddings.build(job, job.inputs, "up") == body


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["index", "embedding", "data", "object"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values, st.integers(1, 3))
def test_any_json_is_vectors_or_malformed(data: Any, num: int) -> None:
    found = read(json.dumps({"data": data}).encode(), num)
    assert found == "malformed" or (isinstance(found, Embedded) and len(found.vectors) == num)


@pytest.mark.parametrize(
    "answer",
    [
        b"{", b"[]", b'{"data": 3}', b'{"data": []}', b'{"data": ["x"]}', b'{"data": [{"embedding": []}]}',
        b'{"data": [{"embedding": ["x"]}]}', b'{"data": [{"embedding": [1e39]}]}', b'{"data": [{"embedding": [true]}]}',
        b'{"data": [{"index": [], "embedding": [1]}]}',
        b'{"data": [{"index": 1, "embedding": [1]}]}', b'{"data": [{"embedding": [1]}, {"embedding": [1]}]}',
    ],
)  # fmt: skip
def test_an_invalid_embedding_is_malformed(answer: bytes) -> None:
    assert read(answer, 1) == "malformed"
