"""The `openai` backend against an upstream that behaves, and one that misbehaves in every known way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from penstock.backends import Backend, build_backend
from penstock.errors import ConfigError
from penstock.event import Completion, Done, Event, Failed, Usage, fold
from penstock.job import Batch, Claim, Job, Message, Sampling
from penstock.piece import Logprob, Piece, Token, ToolCall, decode_vector, join
from tests.upstream import Upstream, tokens_of
from tests.waiting import wait_until, wait_until_async

PROMPT = "one two three"
QUICK = {"connect_s": "1", "first_token_s": "0.3", "idle_s": "0.3", "retry_s": "2", "health": "none"}

# What is tried elsewhere while no token has come.
BEFORE_THE_FIRST = [
    *("status=500", "status=502", "status=503", "status=429", "status=408", "status=401", "status=403", "status=404"),
    *("drop", "hang", "html", "json", "gzip", "endless_line", "endless_event"),
    *("cut_after=0", "end_after=0", "abort_after=0", "error_after=0", "wrong_json_after=0", "hang_after=0"),
    "comments_after=0",
]
# The same, said otherwise.
FORMS = ["ok", "no_done", "only_done", "usage_in_last", "no_usage", "crlf", "bytewise", "one_write"]


@contextlib.asynccontextmanager
async def _backend(*upstreams: Upstream, **options: str) -> AsyncIterator[Backend]:
    url = "+".join(upstream.url for upstream in upstreams)
    backend = build_backend("openai", {"url": url, **QUICK, **options})
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


def _claim(prompt: str | None = PROMPT, tokens: tuple[Token, ...] = (), deadline_s: float = 30, **job: Any) -> Claim:
    sampling = Sampling(max_tokens=5, **job.pop("sampling", {}))
    made = Job(id=job.pop("id", "g.1"), model="m", prompt=prompt, sampling=sampling, **job)
    return Claim(made, 1, time.monotonic() + deadline_s, tokens)


async def _ask(backend: Backend, claim: Claim) -> Completion:
    events: list[Event] = [event async for event in backend.generate(Batch((claim,)))]
    return fold(events, Completion(claim.tokens))


def _error(said: Completion) -> Failed:
    assert isinstance(said.end, Failed), said
    return said.end


@pytest.mark.parametrize("mood", FORMS)
@pytest.mark.parametrize("is_chat", [False, True])
async def test_every_form_of_a_stream_is_the_same_answer(mood: str, is_chat: bool) -> None:
    claim = _claim(None, messages=(Message("user", PROMPT),)) if is_chat else _claim()
    async with Upstream(mood) as up, _backend(up) as backend:
        said = await _ask(backend, claim)
        assert len(said.tokens) == 5
        if not is_chat:
            assert list(said.tokens) == tokens_of(PROMPT, 5)
        assert isinstance(said.end, Done)
        assert said.end.finish_reason == ("stop" if mood == "only_done" else "length")
        assert said.end.usage.completion_tokens == 5
        assert up.seen[0].path == ("/v1/chat/completions" if is_chat else "/v1/completions")


@pytest.mark.parametrize("mood", BEFORE_THE_FIRST)
async def test_before_the_first_token_another_replica_is_tried(mood: str) -> None:
    async with Upstream(mood) as bad, Upstream() as good, _backend(bad, good) as backend:
        said = await _ask(backend, _claim())
        assert list(said.tokens) == tokens_of(PROMPT, 5)
        assert isinstance(said.end, Done)
        assert (len(bad.seen), len(good.seen)) == (1, 1)


@pytest.mark.parametrize("mood", ["status=503", "status=500", "status=429", "drop", "wrong_json_after=0"])
async def test_a_lone_replica_is_tried_again(mood: str) -> None:
    async with Upstream() as up, _backend(up) as backend:
        up.moods.extend([mood, mood])
        assert list((await _ask(backend, _claim())).tokens) == tokens_of(PROMPT, 5)
        assert len(up.seen) == 3


async def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    async with Upstream() as up:
        url, port = up.url, up.port
    backend = build_backend("openai", {"url": url, **QUICK})
    await backend.start()
    asking = asyncio.create_task(_ask(backend, _claim()))
    async with Upstream(port=port):
        assert isinstance((await asking).end, Done)
    await backend.close()


@pytest.mark.parametrize(
    ("mood", "code"),
    [
        ("status=400", "invalid_request"),
        ("status=422", "invalid_request"),
        ("flat_error", "invalid_request"),
        ("status=401", "backend_error"),
        ("status=404", "backend_error"),
        ("status=418", "backend_error"),
        ("status=500", "backend_error"),
        ("status=429", "overloaded"),
    ],
)
async def test_what_an_upstream_refuses_is_the_jobs_own_error(
    mood: str, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    options = {"key_env": "MY_KEY", "retry_s": "0.2", "tries": "1"}
    async with Upstream(mood, key="sk-very-secret") as up, _backend(up, **options) as backend:
        error = _error(await _ask(backend, _claim()))
        assert error.code == code
        if mood in ("status=400", "status=422"):
            assert error.param == "temperature"
        assert up.seen[0].headers["authorization"] == "Bearer sk-very-secret"
        assert "sk-very-secret" not in error.message + caplog.text + repr(backend.capabilities)


async def test_a_wrong_key_is_the_operators_business() -> None:
    async with Upstream(key="right") as up, _backend(up) as backend:
        error = _error(await _ask(backend, _claim()))
        assert error.code == "backend_error"
        assert "credentials" in error.message


@pytest.mark.parametrize("mood", ["cut_after=2", "end_after=2", "hang_after=2", "comments_after=2", "abort_after=2"])
async def test_an_answer_that_breaks_off_is_lost_or_goes_on_elsewhere(mood: str) -> None:
    async with Upstream(mood) as bad, Upstream() as good:
        async with _backend(bad, good) as backend:
            said = await _ask(backend, _claim())
            assert list(said.tokens) == tokens_of(PROMPT, 2)
            assert _error(said).code == "worker_lost"
        async with _backend(bad, good, resumes="prompt") as backend:
            said = await _ask(backend, _claim())
            assert list(said.tokens) == tokens_of(PROMPT, 5)
            assert isinstance(said.end, Done)
            assert said.end.usage == Usage(len(PROMPT.split()), 5)
            assert good.seen[-1].body["prompt"] == PROMPT + "".join(tokens_of(PROMPT, 2))
            assert good.seen[-1].body["max_tokens"] == 3


async def test_an_answer_of_an_earlier_attempt_goes_on_only_where_it_may() -> None:
    begun = tuple(tokens_of(PROMPT, 2))
    async with Upstream() as up:
        async with _backend(up) as backend:
            assert _error(await _ask(backend, _claim(tokens=begun))).code == "worker_lost"
            assert up.seen == []
        async with _backend(up, resumes="prompt+messages", engine="vllm") as backend:
            assert list((await _ask(backend, _claim(tokens=begun))).tokens) == tokens_of(PROMPT, 5)
            chat = _claim(None, ("a", "b"), messages=(Message("user", "x"),))
            assert len((await _ask(backend, chat)).tokens) == 5
            assert up.seen[-1].body["messages"][-1] == {"role": "assistant", "content": "ab"}
            thought = _claim(None, (Piece(reasoning="hm"),), messages=(Message("user", "x"),))
            assert _error(await _ask(backend, thought)).code == "worker_lost"


async def test_what_an_upstream_says_more_than_text_comes_through() -> None:
    talk: dict[str, Any] = {"messages": (Message("user", PROMPT),), "prompt": None}
    async with Upstream("tools") as up, _backend(up, engine="vllm") as backend:
        said = await _ask(
            backend, _claim(**talk, sampling={"tools": ({"type": "function", "function": {"name": "f"}},)})
        )
        assert join(said.tokens).tool_calls == (ToolCall(0, "call_1", "f", '{"a": 1}'),)
        assert isinstance(said.end, Done)
        assert said.end.finish_reason == "tool_calls"
        for mood in ("reasoning", "reasoning_content"):
            up.mood = mood
            whole = join((await _ask(backend, _claim(**talk))).tokens)
            assert len(whole.reasoning.split()) == 2
            assert len(whole.text.split()) == 3
        up.mood = "ok"
        plain: dict[str, Any] = {}
        for job in (talk, plain):
            whole = join((await _ask(backend, _claim(**job, sampling={"logprobs": 1}))).tokens)
            assert len(whole.logprobs) == 5
            assert all(isinstance(one, Logprob) and one.logprob == -0.5 and len(one.top) == 1 for one in whole.logprobs)


async def test_an_upstream_that_ignores_the_limit_is_cut_off() -> None:
    async with Upstream("ignores_max_tokens") as up, _backend(up, first_token_s="9") as backend:
        said = await _ask(backend, _claim())
        assert isinstance(said.end, Done)
        assert said.end.finish_reason == "length"
        assert len(said.tokens) < 100
        await wait_until(lambda: up.num_open == 0, "its stream is closed")


async def test_cancelling_closes_the_upstreams_stream_at_once() -> None:
    async with Upstream("hang_after=2") as up, _backend(up, idle_s="30", first_token_s="30") as backend:
        claim = _claim()
        events = backend.generate(Batch((claim,)))
        await anext(events)
        claim.cancel("client")
        async for _ in events:
            pass
        await wait_until(lambda: up.seen[0].left and up.num_open == 0, "the upstream sees its client leave")


async def test_slots_bound_what_runs_at_a_replica() -> None:
    async with Upstream(token_s=0.005) as one, Upstream(token_s=0.005) as two, _backend(one, two, slots="2") as backend:
        answers = await asyncio.gather(*(_ask(backend, _claim(id=f"g.{number}")) for number in range(16)))
        assert all(isinstance(said.end, Done) for said in answers)
        assert one.max_open == two.max_open == 2
        assert len(one.seen) + len(two.seen) == 16
        assert min(len(one.seen), len(two.seen)) >= 4


async def test_a_replica_that_fails_is_ejected_and_comes_back() -> None:
    told: list[tuple[str, Mapping[str, str], float]] = []
    async with (
        Upstream("status=503") as bad,
        Upstream() as good,
        _backend(bad, good, max_failures="2", eject_s="0.05") as backend,
    ):
        backend.observer = lambda *what: told.append(what)
        for number in range(6):
            assert isinstance((await _ask(backend, _claim(id=f"g.{number}"))).end, Done)
        seen = len(bad.seen)
        assert seen <= 4  # two failures eject it; after that only trials
        bad.mood = "ok"

        async def is_back() -> bool:
            await _ask(backend, _claim())
            return len(bad.seen) > seen

        await wait_until_async(is_back, "it comes back")
    up = [value for name, labels, value in told if name == "upstream_up" and labels["upstream"].endswith(str(bad.port))]
    assert up[0] == 0.0
    assert up[-1] == 1.0


async def test_a_health_check_brings_a_replica_back_and_spares_requests() -> None:
    async with Upstream("status=503") as bad, Upstream() as good:
        options = {"engine": "vllm", "health": "", "max_failures": "1", "eject_s": "0.05"}
        async with _backend(bad, good, **options) as backend:
            bad.health = 503
            await _ask(backend, _claim())
            seen = len(bad.seen)
            await wait_until(lambda: bad.num_checks >= 2, "it is checked again and again")
            await asyncio.gather(*(_ask(backend, _claim(id=f"g.{number}")) for number in range(8)))
            assert len(bad.seen) == seen
            bad.health, bad.mood = 200, "ok"

            async def is_used() -> bool:
                await _ask(backend, _claim())
                return len(bad.seen) > seen

            await wait_until_async(is_used, "it is found well, and used again")


async def test_lower_tiers_are_asked_when_a_higher_one_cannot() -> None:
    told: Counter[tuple[str, str]] = Counter()
    async with Upstream("status=503") as own, Upstream("status=429") as second, Upstream() as hosted:
        options = {"url2": second.url, "url3": hosted.url, "model3": "their-name", "model": "our-name"}
        async with _backend(own, **options) as backend:

            def hear(metric: str, labels: Mapping[str, str], value: float) -> None:
                if metric == "upstream_fallbacks_total":
                    told[labels["tier"], labels["reason"]] += 1

            backend.observer = hear
            assert isinstance((await _ask(backend, _claim())).end, Done)
            assert own.seen[0].body["model"] == "our-name"
            assert hosted.seen[0].body["model"] == "their-name"
            assert told["1", "server_error"] >= 1
            assert told["2", "rate_limited"] == 1
            own.mood = "ok"
            num = len(hosted.seen)
            await asyncio.sleep(0)
            assert isinstance((await _ask(backend, _claim())).end, Done)
            assert len(hosted.seen) == num  # the first tier is asked first again


async def test_retry_after_is_honoured() -> None:
    async with Upstream() as up, _backend(up, retry_s="5") as backend:
        up.retry_after = "0.4"
        up.moods.append("status=429")
        began = time.monotonic()
        assert isinstance((await _ask(backend, _claim())).end, Done)
        assert time.monotonic() - began >= 0.4
        up.retry_after = "3600"
        up.moods.append("status=429")
        error = _error(await _ask(backend, _claim()))
        assert (error.code, math.ceil(error.retry_after_s or 0)) == ("overloaded", 3600)


async def test_nothing_is_tried_beyond_the_deadline() -> None:
    async with Upstream("status=503") as up, _backend(up, retry_s="60", tries="100") as backend:
        error = _error(await _ask(backend, _claim(deadline_s=0.5)))
        assert error.code == "backend_error"
        assert len(up.seen) < 10


async def test_embeddings_of_all_inputs_in_one_request() -> None:
    async with Upstream("status=503") as bad, Upstream() as good, _backend(bad, good, task="embed") as backend:
        assert (backend.capabilities.embeds, backend.capabilities.generates) == (True, False)
        said = await _ask(backend, _claim(None, inputs=("a", "bcd", "ef")))
        vectors = [decode_vector(token.embedding) for token in said.tokens if isinstance(token, Piece)]
        assert vectors == [[1.0, 0.0], [3.0, 1.0], [2.0, 2.0]]
        assert isinstance(said.end, Done)
        assert said.end.usage == Usage(3, 0)
        assert good.seen[0].body["input"] == ["a", "bcd", "ef"]
        rest = await _ask(backend, _claim(None, said.tokens[:1], inputs=("a", "bcd", "ef")))
        assert [decode_vector(token.embedding)[0] for token in rest.tokens if isinstance(token, Piece)] == [1, 3, 2]
        short = await _ask(backend, _claim(None, inputs=("a", "b"), sampling={"dimensions": 1}))
        assert good.seen[-1].body["dimensions"] == 1
        assert len(short.tokens) == 2


async def test_embeddings_that_are_none_are_an_error() -> None:
    async with Upstream("wrong_json_after=1") as up, _backend(up, task="embed", tries="2") as backend:
        error = _error(await _ask(backend, _claim(None, inputs=("a", "b"))))
        assert error.code == "backend_error"
        assert len(up.seen) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": ""}, "url is missing"),
        ({"url": "ftp://x"}, "http://"),
        ({"url": "http://user:pw@x"}, "key_env"),
        ({"url": "http://x", "key_env": "sk-1234"}, "name of an environment variable"),
        ({"url": "http://x", "key_env": "NOT_SET_ANYWHERE"}, "not set"),
        ({"url": "http://x", "url3": "http://y"}, "without url2"),
        ({"url": "http://x", "accepts": "tools+magic"}, "magic"),
        ({"url": "http://x", "resumes": "sometimes"}, "resumes"),
        ({"url": "http://x", "engine": "steam"}, "engine"),
        ({"url": "http://x", "idle_s": "0"}, "idle_s"),
        ({"url": "http://x", "health": "healthz"}, "health"),
        ({"url": "http://x", "slots": "0"}, "slots"),
    ],
)
def test_wrong_options_are_named_and_secrets_are_not(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        build_backend("openai", options)
    assert "sk-1234" not in refused.value.message
    assert ":pw@" not in refused.value.message


def test_what_a_model_can_do_is_what_every_tier_can() -> None:
    vllm = build_backend("openai", {"url": "http://x", "engine": "vllm"})
    assert {"tools", "top_k", "images", "logprobs"} <= set(vllm.capabilities.accepts)
    mixed = build_backend("openai", {"url": "http://x", "engine": "vllm", "url2": "http://y", "engine2": "openai"})
    assert "tools" in mixed.capabilities.accepts
    assert "top_k" not in mixed.capabilities.accepts
    told = build_backend("openai", {"url": "http://x", "accepts": "stop+seed", "max_tokens": "99"})
    assert (told.capabilities.accepts, told.capabilities.max_tokens) == (("stop", "seed"), 99)
