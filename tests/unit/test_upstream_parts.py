"""The pure parts of the `openai` backend: requests, chunks, errors, breakers, the choice of a replica, a job's trip."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.backends.openai import chunks, embeddings, request, trouble
from penstock.backends.openai.breaker import Breaker
from penstock.backends.openai.chunks import Chunks
from penstock.backends.openai.engines import ENGINES
from penstock.backends.openai.replicas import Choice, Replica, Tier, choose
from penstock.backends.openai.request import Form, build
from penstock.backends.openai.trip import Patience, Trip, Wait
from penstock.backends.openai.trouble import Trouble, cut, of_status, read_retry_after, unreachable
from penstock.errors import BackendError, InvalidRequest, Overloaded, PenstockError, UnsupportedParameter
from penstock.event import Usage
from penstock.job import Job, Message, Sampling
from penstock.piece import Piece, ToolCall, join
from penstock.settings.models import ModelSpec, read_models
from penstock.sse import ServerEvent
from penstock.worker.process import build_backends

VLLM, OPENAI = ENGINES["vllm"], ENGINES["openai"]
TOOLS = ({"type": "function", "function": {"name": "f"}},)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["choices", "delta", "content", "text", "usage", "error", "finish_reason", "tool_calls", "function", "logprobs",
     "index", "id", "name", "arguments", "code", "message", "prompt_tokens", "completion_tokens", "reasoning",
     "token", "logprob", "tokens", "token_logprobs", "top_logprobs"]
)  # fmt: skip
chunk_like = st.recursive(
    json_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _job(**fields: Any) -> Job:
    sampling = Sampling(**{"max_tokens": 9, **fields.pop("sampling", {})})
    fields.setdefault("prompt", None if "messages" in fields else "hi")
    return Job(id="g.1", model="m", sampling=sampling, **fields)


def _body(
    job: Job, tokens: tuple[str, ...] = (), engine: Any = VLLM, form: Form | None = None
) -> tuple[str, dict[str, Any]]:
    path, body = build(job, tokens, "theirs", engine, form or Form())
    return path, json.loads(body)


def test_a_prompt_and_a_conversation_go_their_own_ways() -> None:
    path, body = _body(_job())
    assert path == "/completions"
    assert body == {
        "model": "theirs",
        "prompt": "hi",
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
    }
    path, body = _body(_job(messages=(Message("user", "hi"),)), engine=OPENAI, form=Form(asks_usage=False))
    assert path == "/chat/completions"
    assert body == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hi"}],
        "n": 1,
        "stream": True,
        "max_completion_tokens": 9,
    }
    path, body = _body(_job(), form=Form(api="chat"))
    assert (path, body["messages"]) == ("/chat/completions", [{"role": "user", "content": "hi"}])


def test_every_field_arrives_under_the_engines_own_name() -> None:
    sampling: dict[str, Any] = {
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ("a",),
        "seed": 0,
        "top_k": 4,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": 1.0},
        "logprobs": 2,
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
        "dimensions": 3,
    }
    assert set(sampling) | {"max_tokens"} == set(Sampling.__struct_fields__)
    del sampling["dimensions"]  # of embeddings
    job = _job(messages=(Message("user", "hi"),), sampling=sampling, user="u")
    body = _body(job)[1]
    asked = {**sampling, "stop": ["a"], "tools": list(TOOLS), "logprobs": True, "top_logprobs": 2, "user": "u"}
    assert {name: body[name] for name in asked} == asked
    assert _body(job, engine=ENGINES["llamacpp"])[1]["repeat_penalty"] == 1.1
    plain = _body(_job(sampling={"logprobs": 2}))[1]
    assert plain["logprobs"] == 2


@pytest.mark.parametrize("name", ["tools", "tool_choice", "response_format", "reasoning_effort"])
def test_what_the_route_has_no_field_for_is_refused(name: str) -> None:
    value: Any = {"tools": TOOLS, "response_format": {"type": "json_object"}}.get(name, "auto")
    with pytest.raises(UnsupportedParameter) as refused:
        _body(_job(sampling={name: value}))
    assert refused.value.param == name
    with pytest.raises(InvalidRequest):
        _body(_job(messages=(Message("user", "x"),)), form=Form(api="completions"))


def test_messages_with_tools_and_images_arrive() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    messages = (
        Message("user", "x", parts=({"type": "text", "text": "x"}, image), name="ann"),
        Message("assistant", "", tool_calls=(ToolCall(0, "c", "f", "{}"),)),
        Message("tool", "17", tool_call_id="c"),
    )
    assert _body(_job(messages=messages))[1]["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "x"}, image], "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "17", "tool_call_id": "c"},
    ]


def test_only_text_can_be_continued() -> None:
    form = Form(resumes=frozenset({"prompt"}))
    assert request.can_continue(_job(), ["a", Piece("b")], form)
    assert not request.can_continue(_job(), [Piece(reasoning="x")], form)
    assert not request.can_continue(_job(messages=(Message("user", "x"),)), ["a"], form)
    assert not request.can_continue(_job(sampling={"response_format": {"type": "json_object"}}), ["a"], form)


def _trouble(run: Callable[[], object]) -> Trouble | None:
    """What was raised, if it is trouble; anything else fails the test."""
    try:
        run()
    except Trouble as found:
        return found
    return None


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(chunk_like, max_size=5))
def test_no_chunk_surprises(said: list[Any]) -> None:
    reader = Chunks("m", "key")

    def read() -> None:
        for value in said:
            token = reader.feed(ServerEvent("message", json.dumps(value)))
            assert token is None or isinstance(token, str | Piece)
        reader.finish()

    found = _trouble(read)
    assert found is None or isinstance(found.error, PenstockError)


@given(st.text(max_size=30))
def test_no_text_surprises(data: str) -> None:
    found = _trouble(lambda: Chunks().feed(ServerEvent("message", data)))
    assert found is None or found.reason in ("malformed", "server_error", "cut")


def test_calls_without_an_index_are_told_apart() -> None:
    reader = Chunks()
    parts = [
        {"id": "a", "function": {"name": "f", "arguments": ""}},
        {"function": {"arguments": '{"x":'}},
        {"function": {"arguments": " 1}"}},
        {"id": "b", "function": {"name": "g", "arguments": {"y": 2}}},
    ]
    tokens = [reader.feed(ServerEvent("", json.dumps({"choices": [{"delta": {"tool_calls": [p]}}]}))) for p in parts]
    assert join([token for token in tokens if token is not None]).tool_calls == (
        ToolCall(0, "a", "f", '{"x": 1}'),
        ToolCall(1, "b", "g", '{"y":2}'),
    )
    reader.feed(ServerEvent("", "[DONE]"))
    assert reader.finish().reason == "tool_calls"


def test_a_stream_without_an_end_was_cut() -> None:
    with pytest.raises(Trouble) as found:
        Chunks().finish()
    assert found.value.reason == "cut"
    reader = Chunks()
    reader.feed(ServerEvent("", '{"choices":[{"text":"","finish_reason":"eos_token"}],"usage":{"prompt_tokens":3}}'))
    assert (reader.finish().reason, reader.finish().usage) == ("stop", None)
    reader.feed(ServerEvent("", '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'))
    assert reader.finish().usage == Usage(3, 4)
    assert chunks.DONE == "[DONE]"


@given(st.integers(300, 599), st.binary(max_size=80), st.text("0123456789.-einfa ", max_size=8))
def test_every_status_is_some_trouble(status: int, body: bytes, retry_after: str) -> None:
    found = of_status(status, retry_after, body, "m", "secret")
    assert isinstance(found.error, PenstockError)
    assert found.rest_s is None or 0 <= found.rest_s <= trouble.MAX_RETRY_AFTER_S
    assert found.is_fault == (status >= 500)


def test_a_key_in_an_upstreams_words_is_not_passed_on() -> None:
    body = json.dumps({"error": {"message": "bad key sk-1\n", "param": "sk-1"}}).encode()
    error = of_status(400, None, body, "m", "sk-1").error
    assert (error.message, error.param) == ("bad key ***", "***")


def test_retry_after_in_both_its_forms() -> None:
    now = datetime(2026, 11, 25, 10, 0, 0, tzinfo=UTC)
    assert read_retry_after("1.5") == 1.5
    assert read_retry_after("Wed, 25 Nov 2026 10:00:30 GMT", now) == 30
    assert read_retry_after("Wed, 25 Nov 2026 09:00:00 GMT", now) == 0
    for nonsense in (None, "", "soon", "nan", "inf"):
        assert read_retry_after(nonsense) is None


@given(json_values, st.integers(1, 3))
def test_no_embeddings_surprise(data: Any, num: int) -> None:
    found = _trouble(lambda: embeddings.read(json.dumps({"data": data}).encode(), num))
    assert found is None or found.reason == "malformed"


# ── the breaker ──────────────────────────────────────────────────────────────────────────────────────────────────


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens in whichever order: one trial at a time, none before its time or its check."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(max_failures=2, first_s=1.0, last_s=8.0, has_check=True)
        self.now = 0.0
        self.open: list[bool] = []  # whether each open request is the trial
        self.in_a_row = 0

    @rule(seconds=st.floats(0.1, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.may_begin(self.now))
    @rule()
    def begin(self) -> None:
        was_open = self.breaker.is_open
        if was_open:
            assert self.now >= self.breaker.until
            assert self.breaker.is_checked
        assert self.breaker.begin() == was_open
        self.open.append(was_open)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100), outcome=st.sampled_from(["ok", "fault", "gone"]))
    def ends(self, which: int, outcome: str) -> None:
        is_trial = self.open.pop(which % len(self.open))
        if outcome == "ok":
            self.breaker.succeeded()
            self.open = [False] * len(self.open)  # closed again: nobody is on trial
            self.in_a_row = 0
        elif outcome == "fault":
            was_open = self.breaker.is_open
            self.breaker.failed(self.now, is_trial)
            self.in_a_row += not was_open
            assert self.breaker.is_open == (was_open or self.in_a_row >= 2)
            if self.breaker.is_open:
                self.in_a_row = 0
        self.breaker.abandoned(is_trial)

    @precondition(lambda self: self.breaker.wants_check(self.now))
    @rule(is_well=st.booleans())
    def check(self, is_well: bool) -> None:
        if is_well:
            self.breaker.check_passed()
        else:
            self.breaker.check_failed(self.now)

    @invariant()
    def one_trial_at_a_time(self) -> None:
        assert sum(self.open) <= 1
        if self.breaker.is_open and self.breaker.is_trying:
            assert not self.breaker.may_begin(self.now)

    @invariant()
    def it_is_never_shut_for_ever(self) -> None:
        assert self.breaker.until <= self.now + 8.0


TestBreaker = BreakerMachine.TestCase


# ── replicas, and the way of a job ───────────────────────────────────────────────────────────────────────────────


@st.composite
def tiers(draw: st.DrawFn) -> list[Tier]:
    made = []
    for number in range(1, draw(st.integers(1, 3)) + 1):
        replicas = []
        for place in range(draw(st.integers(1, 3))):
            replica = Replica(f"{number}.{place}", "http://x", Breaker(1), draw(st.sampled_from([None, 1, 2])))
            replica.num_open, replica.turn = draw(st.integers(0, 3)), draw(st.integers(0, 9))
            replica.rests_until = draw(st.sampled_from([0.0, 5.0, 50.0]))
            if draw(st.booleans()):
                replica.breaker.failed(draw(st.floats(0, 10)), False)
            replicas.append(replica)
        made.append(Tier(number, replicas, VLLM))
    return made


@given(tiers(), st.floats(0, 20))
def test_the_choice_is_the_least_loaded_of_the_first_tier_that_can(made: list[Tier], now: float) -> None:
    choice = choose(made, now)
    usable = {tier.number: [one for one in tier.replicas if one.hindrance(now) is None] for tier in made}
    first = next((number for number, found in usable.items() if found), None)
    if choice is None:
        assert first is None
        return
    assert choice.tier.number == first
    assert choice.replica in usable[first]
    assert choice.replica.num_open == min(one.num_open for one in usable[first])


_TROUBLES: list[Callable[[], Trouble]] = [
    lambda: cut("x"),
    lambda: unreachable("x"),
    lambda: of_status(503, None, b"", "m"),
    lambda: of_status(429, "2", b"", "m"),
    lambda: of_status(404, None, b"", "m"),
    lambda: of_status(500, None, b"", "m"),
]


@given(tiers(), st.lists(st.sampled_from(_TROUBLES), min_size=60, max_size=60), st.floats(0.1, 40))
def test_every_trip_ends(made: list[Tier], happens: list[Callable[[], Trouble]], deadline_s: float) -> None:
    for tier in made:
        for replica in tier.replicas:
            replica.num_open = 0  # nobody else is here
    trip = Trip(made, Patience(retry_s=10, tries=3), 0.0, deadline_s, draw=lambda: 0.5)
    now, num_costly = 0.0, 0
    for make in happens:
        try:
            step = trip.next(now)
            while isinstance(step, Wait):
                assert step.until is not None, "there is room everywhere"
                assert step.until >= now
                now = max(step.until, now + 1e-6)
                step = trip.next(now)
        except (BackendError, Overloaded):
            break
        assert isinstance(step, Choice)
        assert step.replica.hindrance(now) is None
        found = make()
        num_costly += found.costs_try
        trip.failed(step.replica, step.tier, found, now)
    else:
        pytest.fail("it never gave up")
    assert num_costly <= 3 * len(made)  # in each tier
    assert now <= min(10, deadline_s) + 1e-3 or trip._last is None


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_may_have_several_names() -> None:
    (spec,) = read_models("big=mock:aliases=large+gpt-4o,step_ms=5")
    assert spec.names == ("big", "large", "gpt-4o")
    assert spec.own_options == {"step_ms": "5"}
    backends = build_backends((spec,))
    assert list(backends) == ["big", "large", "gpt-4o"]
    assert len(set(map(id, backends.values()))) == 1
    assert ModelSpec.of_table("big", {"backend": "mock", "aliases": ["large"]}).names == ("big", "large")
    for wrong in ("a=mock:aliases=b;b=mock", "a=mock:aliases=a", "a=mock:aliases=b++c"):
        with pytest.raises(ValueError, match=r"alias|twice"):
            read_models(wrong)
