"""Tokens that are more than text: joined, on the wire, folded, cut at stop strings, and made by backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.intake import Draft, check_capabilities, job_of
from penstock.backends.base import Backend, Embedded, Finish
from penstock.backends.mock.engine import MockBackend
from penstock.backends.stop import StopMatcher
from penstock.errors import UnsupportedParameter
from penstock.event import Done, Event, Failed, Tokens, Usage, fold
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.job import Batch, Claim, Job, Message, Sampling
from penstock.metrics import Metrics
from penstock.rich_token import Logprob, RichToken, Token, ToolCall, decode_vector, encode_vector, join, join_text
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport
from penstock.wire import decode_event, decode_job, encode_event, encode_job

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}

texts = st.text(max_size=8)
calls = st.builds(ToolCall, st.integers(0, 3), texts, texts, texts)
rich_tokens = st.builds(
    RichToken,
    texts,
    texts,
    st.lists(calls, max_size=2).map(tuple),
    st.lists(st.builds(Logprob, texts, st.floats(-20, 0)), max_size=2).map(tuple),
)
tokens = st.lists(st.one_of(texts, rich_tokens), max_size=8)


async def _events(backend: Backend, job: Job, done: tuple[Token, ...] = ()) -> list[Event]:
    claim = Claim(job, 1, 1e9, done)
    return [event async for event in backend.generate(Batch((claim,)))]


def _job(**sampling: Any) -> Job:
    return Job(id="g.1", model="m", messages=(Message("user", "hello"),), sampling=Sampling(**sampling))


@given(tokens)
def test_rich_tokens_survive_the_wire(said: list[Token]) -> None:
    event = Tokens("g.1", 2, 5, tokens=tuple(said))
    again = decode_event(encode_event(event))
    assert again == event
    assert again.end == 5 + len(said)


@given(tokens, st.integers(0, 8))
def test_joining_does_not_depend_on_where_the_answer_was_cut(said: list[Token], at: int) -> None:
    whole = join(said)
    assert whole.text == join_text(said) == join_text(said[:at]) + join_text(said[at:])
    assert whole.reasoning == join(said[:at]).reasoning + join(said[at:]).reasoning
    assert whole.logprobs == join(said[:at]).logprobs + join(said[at:]).logprobs
    assert [call.index for call in whole.tool_calls] == sorted({call.index for call in whole.tool_calls})
    folded = fold([Tokens("g.1", 1, 0, tokens=tuple(said[:at])), Tokens("g.1", 1, at, tokens=tuple(said[at:]))])
    assert join(folded.tokens if len(said) >= at else said) == whole


def test_parts_of_a_tool_call_are_one_call() -> None:
    parts = [
        RichToken(tool_calls=(ToolCall(0, "call_1", "weather"),)),
        RichToken(tool_calls=(ToolCall(1, "call_2", "time", "{}"),)),
        RichToken(tool_calls=(ToolCall(0, arguments='{"city":'),)),
        RichToken(tool_calls=(ToolCall(0, arguments=' "Ulm"}'),)),
    ]
    assert join(parts).tool_calls == (
        ToolCall(0, "call_1", "weather", '{"city": "Ulm"}'),
        ToolCall(1, "call_2", "time", "{}"),
    )


def test_a_job_with_everything_survives_the_wire() -> None:
    job = Job(
        id="g.1",
        model="m",
        messages=(
            Message("user", "", parts=({"type": "image_url", "image_url": {"url": "https://x/y.png"}},)),
            Message("assistant", "", tool_calls=(ToolCall(0, "c", "f", "{}"),)),
            Message("tool", "17", tool_call_id="c"),
        ),
        sampling=Sampling(tools=(TOOL,), tool_choice="auto", response_format={"type": "json_object"}, logprobs=2),
        metadata={"team": "red"},
        user="u1",
    )
    assert decode_job(encode_job(job)) == job
    assert job.sampling.named() == ["logprobs", "tools", "tool_choice", "response_format"]


@given(st.lists(st.text("ab", max_size=3), max_size=6), st.text("ab", min_size=1, max_size=3))
def test_stop_strings_are_found_in_rich_tokens_as_in_text(words: list[str], stop: str) -> None:
    def cut(said: list[Token]) -> tuple[str, bool]:
        matcher, out = StopMatcher((stop,)), list[Token]()
        for token in said:
            released, is_stopped = matcher.push(token)
            out += released
            if is_stopped:
                return join_text(out), True
        return join_text([*out, *matcher.flush()]), False

    assert cut([RichToken(word) for word in words]) == cut(list(words))


async def test_the_mock_gives_log_probabilities() -> None:
    said = fold(await _events(MockBackend(), _job(max_tokens=3, logprobs=2)))
    plain = fold(await _events(MockBackend(), _job(max_tokens=3)))
    assert said.text == plain.text
    logprobs = join(said.tokens).logprobs
    assert [each.token for each in logprobs] == list(plain.tokens)
    assert all(len(each.top) == 2 and each.top[0] == (each.token, each.logprob) for each in logprobs)


@given(st.lists(st.floats(-4, 4, width=32), max_size=20))
def test_vectors_survive_their_way(vector: list[float]) -> None:
    assert decode_vector(encode_vector(vector)) == vector


class Embedding(Backend):
    """One number for each input: its length."""

    capabilities = Capabilities(embeds=True)

    async def stream(self, job: Job, *args: object) -> Any:
        yield "words"

    async def embed(self, job: Job, inputs: Sequence[str]) -> Embedded:
        return Embedded([[float(len(each))] for each in inputs], prompt_tokens=7)


async def test_embeddings_are_tokens_of_the_log_and_continue_after_a_death() -> None:
    for backend in (Embedding(), MockBackend()):
        job = Job(id="g.1", model="m", inputs=("a", "bc", "def"))
        said = fold(await _events(backend, job))
        assert isinstance(said.end, Done)
        assert said.end.usage.completion_tokens == 0
        assert said.end.usage.prompt_tokens > 0
        vectors = [decode_vector(token.embedding) for token in said.tokens if isinstance(token, RichToken)]
        assert len(vectors) == 3
        rest = await _events(backend, job, said.tokens[:1])
        assert fold([Tokens("g.1", 1, 0, tokens=said.tokens[:1]), *rest]).tokens == said.tokens
    assert "stop" in Embedding.capabilities.accepts  # what a base class adds leaves the rest as it is
    assert Embedding.capabilities.embeds


class Ending(Backend):
    """An engine that ends by itself: its stop strings and lengths are its own business."""

    handles_stop = True

    def __init__(self, finish: Finish | None = None) -> None:
        self._finish = finish

    async def stream(self, job: Job, *args: object) -> Any:
        for word in ("a", "stop", RichToken(reasoning="hm"), "b"):
            yield word
        if self._finish is not None:
            yield self._finish


async def test_an_engine_that_handles_stop_ends_its_stream_with_a_finish() -> None:
    job = _job(max_tokens=2, stop=("stop",))
    events = await _events(Ending(Finish("content_filter", Usage(7, 9))), job)
    end = events[-1]
    assert isinstance(end, Done)
    assert (end.finish_reason, end.usage) == ("content_filter", Usage(7, 9))
    assert fold(events).text == "astopb"


async def test_an_engine_that_ends_without_saying_why_has_failed() -> None:
    (*_, end) = await _events(Ending(), _job(max_tokens=9))
    assert isinstance(end, Failed)
    assert end.code == "backend_error"


def test_an_ability_that_no_backend_declares_is_refused() -> None:
    can = MockBackend(tools=False, json=False).capabilities
    check_capabilities(Sampling(logprobs=1), "m", can)
    for name, value in {"tools": (TOOL,), "presence_penalty": 0.5, "response_format": {"type": "text"}}.items():
        with pytest.raises(UnsupportedParameter) as refused:
            check_capabilities(Sampling(**{name: value}), "m", can)  # type: ignore[arg-type]  # by name
        assert refused.value.param == name
    with pytest.raises(UnsupportedParameter) as refused:
        check_capabilities(Sampling(), "m", can, has_images=True)
    assert refused.value.param == "messages"


def test_images_that_the_engine_would_have_to_fetch_are_refused() -> None:
    can = Capabilities(accepts=("images",))
    check_capabilities(Sampling(), "m", can, has_images=True)
    with pytest.raises(UnsupportedParameter, match="as data: URLs") as refused:
        check_capabilities(Sampling(), "m", can, has_images=True, fetches=True, names={"messages": "input"})
    assert refused.value.param == "input"
    check_capabilities(Sampling(), "m", Capabilities(accepts=("images", "image_urls")), has_images=True, fetches=True)


def test_content_that_an_engine_would_fetch_is_detected_at_the_gateway() -> None:
    gateway = Gateway(Settings(), MemoryTransport(), Metrics())
    worker = WorkerInfo(id="w", models={"m": Capabilities(accepts=("images",))}, num_slots=1, num_free=1)
    gateway.pool.look(Pool(depth=0, workers=(worker,)))

    def job(url: str) -> Job:
        image = {"type": "image_url", "image_url": {"url": url}}
        return job_of(gateway, Caller("", ""), Draft(messages=(Message("user", "", parts=(image,)),)), "j")

    assert job("data:image/png;base64,aaaa").messages
    with pytest.raises(UnsupportedParameter, match="as data: URLs"):
        job("http://169.254.169.254/latest")


@pytest.mark.parametrize(
    ("part", "fetches"),
    [
        ({"type": "text", "text": "http://h"}, False),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}, False),
        ({"type": "image_url", "image_url": {"url": "Data:image/png;base64,aaaa"}}, False),
        ({"type": "image_url", "image_url": {"url": "https://h/a.png"}}, True),
        ({"type": "image_url", "image_url": "https://h/a.png"}, True),
        ({"type": "video_url", "video_url": {"url": "https://h/a.mp4"}}, True),
        ({}, True),
    ],
)
def test_messages_that_refer_to_remote_content_are_detected(part: dict[str, Any], fetches: bool) -> None:
    assert Message("user", "", parts=({"type": "text", "text": "x"}, part)).fetches is fetches
