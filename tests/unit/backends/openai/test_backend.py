"""The backend before upstreams that work: what they say comes through, load is spread, and time is kept.

Those that fail are in `test_failing_upstreams`.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.event import Event, Usage, fold
from penstock.job import Batch, Claim, Message
from penstock.metrics import Metrics
from penstock.rich_token import Logprob, RichToken, ToolCall, join
from tests.support.asking import PROMPT, TALK, Watch, ask, claim, done_of, failed_of, is_whole, running
from tests.support.upstream import CONTEXT, Upstream, tokens_of
from tests.support.waiting import wait_until

KEY = "sk-very-secret-1"

# ── what servers really send ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "mood", ["ok", "no_done", "only_done", "usage_in_last", "no_usage", "crlf", "bytewise", "one_write"]
)
@pytest.mark.parametrize("is_chat", [False, True])
async def test_every_form_of_a_stream_is_the_same_answer(mood: str, is_chat: bool) -> None:
    async with Upstream(mood) as up, running(up.url) as backend:
        said = await ask(backend, claim(messages=TALK if is_chat else None))
    done = done_of(said)
    assert done.finish_reason == ("stop" if mood == "only_done" else "length")
    assert (len(said.tokens), done.usage.completion_tokens) == (5, 5)
    if not is_chat:
        assert is_whole(said)
        assert done.usage == Usage(3, 5), "the upstream's, or counted here"
    assert up.seen[0].path == ("/v1/chat/completions" if is_chat else "/v1/completions")
    assert up.seen[0].body["model"] == "m"


@pytest.mark.parametrize("mood", ["reasoning", "reasoning_content"])
async def test_reasoning_is_passed_on(mood: str) -> None:
    async with Upstream(mood) as up, running(up.url) as backend:
        said = join((await ask(backend, claim(messages=TALK))).tokens)
    assert (len(said.reasoning.split()), len(said.text.split())) == (2, 3)


@pytest.mark.parametrize(
    ("props", "options", "takes"),
    [
        ('{"modalities": {"vision": true, "audio": false}}', {}, True),
        ('{"modalities": {"vision": false}}', {}, False),
        ('{"total_slots": 1}', {}, False),
        ("<html>", {}, False),
        ("", {}, False),
        ("", {"images": "data"}, True),
        ('{"modalities": {"vision": true}}', {"images": "none"}, False),
        ('{"modalities": {"vision": true}}', {"accepts": "engine+beams"}, True),
        ('{"modalities": {"vision": true}}', {"accepts": "stop"}, False),
    ],
)
async def test_llamacpp_takes_images_if_its_model_does(props: str, options: dict[str, str], takes: bool) -> None:
    async with Upstream(props=props) as up, running(up.url, engine="llamacpp", **options) as backend:
        assert ("images" in backend.capabilities.accepts) == takes
    async with running(up.url, engine="llamacpp", **options) as backend:
        assert ("images" in backend.capabilities.accepts) == ("images" in options and takes)


@pytest.mark.parametrize("messages", [TALK, None])
async def test_a_whole_answer_to_a_streamed_request_is_read(messages: tuple[Message, ...] | None) -> None:
    async with Upstream("whole") as up, running(up.url) as backend:
        said = await ask(backend, claim(messages=messages))
    assert len(said.tokens) == len(up.seen) == 1
    assert said.text.count(".") == 5
    assert (done_of(said).finish_reason, done_of(said).usage) == ("stop", Usage(3, 2))


async def test_tool_calls_come_through() -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    async with Upstream("tools") as up, running(up.url, engine="vllm") as backend:
        said = await ask(backend, claim(messages=TALK, tools=tools))
    assert join(said.tokens).tool_calls == (ToolCall(0, "call_1", "f", '{"a": 1}'),)
    assert done_of(said).finish_reason == "tool_calls"
    assert up.seen[0].body["tools"] == list(tools)


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize("num", [0, 1, 2])
async def test_logprobs_come_through(is_chat: bool, num: int) -> None:
    async with Upstream() as up, running(up.url, engine="vllm") as backend:
        said = await ask(backend, claim(messages=TALK if is_chat else None, logprobs=num))
    for token in said.tokens:
        assert isinstance(token, RichToken)
        # On the plain route the upstream knows one alternative, itself.
        top = ((token.text, -0.5),) * (num if is_chat else min(num, 1))
        assert token.logprobs == (Logprob(token.text, -0.5, top),)
    assert len(said.tokens) == 5


async def test_a_connection_is_used_again_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UP_KEY", f" {KEY}\n")
    async with Upstream(key=KEY) as up, running(up.url, key_env="UP_KEY", model="theirs") as backend:
        for _ in range(5):
            assert is_whole(await ask(backend))
    assert (up.num_connections, up.seen[0].body["model"]) == (1, "theirs")
    assert up.seen[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_field_that_the_upstreams_api_lacks_is_refused_before_sending() -> None:
    watch = Watch()
    async with Upstream() as up, running(up.url, watch, api="completions") as backend:
        error = failed_of(await ask(backend, claim(messages=TALK)))
    assert (error.code, error.param) == ("invalid_request", "messages")
    assert (watch.outcomes(), up.seen) == (["invalid"], [])


async def test_an_upstream_that_ignores_max_tokens_is_cut() -> None:
    async with Upstream("ignores_max_tokens") as up, running(up.url) as backend:
        said = await ask(backend)
        assert done_of(said).finish_reason == "length"
        assert len(said.tokens) < 100
        await wait_until(lambda: up.num_open == 0, "its stream to be closed")


# ── an answer that has begun at another worker ───────────────────────────────────────────────────────────────────


async def test_an_answer_of_a_dead_worker_continues_if_the_model_declares_it() -> None:
    begun = tuple(tokens_of(PROMPT, 3))
    async with Upstream() as up:
        async with running(up.url) as backend:
            assert failed_of(await ask(backend, claim(tokens=begun))).code == "worker_lost"
            assert not backend.can_continue(claim(tokens=begun))
        async with running(up.url, resumes="prompt") as backend:
            lost = await ask(backend, claim(tokens=("a",), messages=TALK))
            assert failed_of(lost).code == "worker_lost", "a conversation is not declared"
            assert not backend.can_continue(claim(tokens=("a",), messages=TALK))
            assert up.seen == []
            assert backend.can_continue(claim(tokens=begun))
            assert is_whole(await ask(backend, claim(tokens=begun)))
            assert up.seen[0].body["prompt"] == PROMPT + "".join(begun)
        async with running(up.url, resumes="prompt+messages", engine="vllm") as backend:
            assert len((await ask(backend, claim(tokens=("a", "b"), messages=TALK))).tokens) == 5
            assert up.seen[1].body["messages"][-1] == {"role": "assistant", "content": "ab"}
            thought = claim(tokens=(RichToken(reasoning="hm"),), messages=TALK)
            assert failed_of(await ask(backend, thought)).code == "worker_lost", "no engine takes its reasoning back"
            assert not backend.can_continue(thought)
    assert len(up.seen) == 2


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_engine_that_was_asked_for_no_limit_is_left_at_ours() -> None:
    async with Upstream("ignores_max_tokens") as up, running(up.url, engine="vllm") as backend:
        said = await ask(backend, claim(messages=TALK, max_tokens=9, max_tokens_given=False))
        await wait_until(lambda: up.num_open == 0, "the engine's stream to be closed")
    assert (len(said.tokens), done_of(said).finish_reason) == (9, "length")
    assert "max_tokens" not in up.seen[0].body


async def test_an_engine_that_was_asked_for_no_limit_ends_by_itself() -> None:
    async with Upstream() as up, running(up.url, engine="vllm") as backend:
        said = await ask(backend, claim(messages=TALK, max_tokens=900, max_tokens_given=False))
    assert len(said.tokens) == CONTEXT


@pytest.mark.parametrize(("mood", "num"), [("hang", 0), ("hang_after=2", 2)])
async def test_cancellation_closes_the_upstreams_stream_at_once(mood: str, num: int) -> None:
    async with Upstream(mood) as up, running(up.url, idle_s="60", first_token_s="60") as backend:
        one, events = claim(), list[Event]()

        async def collect() -> None:
            async for event in backend.generate(Batch((one,))):
                events.append(event)

        collecting = asyncio.create_task(collect())
        await wait_until(lambda: up.num_open == 1 and len(events) == num, "the upstream to work")
        one.cancel("client")
        await wait_until(lambda: up.num_open == 0, "the upstream to stop")
        await collecting
        assert up.seen[0].left


async def test_a_consumer_that_pauses_is_not_the_upstreams_silence() -> None:
    async with Upstream() as up, running(up.url, idle_s="0.2") as backend:
        stream = backend.stream(claim().job)
        seen = [await anext(stream)]
        until = time.monotonic() + 0.4
        await wait_until(lambda: time.monotonic() > until, "twice idle_s")
        seen += [token async for token in stream]
    assert seen[:-1] == tokens_of(PROMPT, 5)


# ── many ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_load_is_spread_and_slots_are_kept() -> None:
    async with Upstream(token_s=0.005) as one, Upstream(token_s=0.005) as two:
        async with running(f"{one.url}+{two.url}", slots="3") as backend:
            claims: tuple[Claim, ...] = tuple(claim(str(i)) for i in range(24))
            events: dict[str, list[Event]] = {c.job.id: [] for c in claims}
            async for event in backend.generate(Batch(claims)):
                events[event.job_id].append(event)
            assert all(is_whole(fold(each)) for each in events.values())
        assert (one.max_open, two.max_open) == (3, 3)
        assert len(one.seen) + len(two.seen) == 24
        assert min(len(one.seen), len(two.seen)) >= 8


async def test_a_full_tier_overflows_into_the_next() -> None:
    watch = Watch()
    async with Upstream("hang") as own, Upstream() as hosted:
        options = {"slots": "1", "upstreams.2.url": hosted.url, "first_token_s": "30"}
        async with running(own.url, watch, **options) as backend:
            one = claim("first")
            asking = asyncio.create_task(ask(backend, one))
            await wait_until(lambda: own.num_open == 1, "the first job to fill the tier")
            assert is_whole(await ask(backend))
            one.cancel("client")
            await asking
    assert watch.fallbacks() == [("1", "full")]


async def test_labels_come_from_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics = Metrics(models=["m"])
    async with Upstream() as up, running(up.url) as backend:
        backend.observer = lambda *what: metrics.report("m", *what)
        await ask(backend)
    samples = {
        (sample.name, sample.labels.get("upstream"), sample.labels.get("outcome")): sample.value
        for family in text_string_to_metric_families(metrics.expose()[0].decode())
        for sample in family.samples
        if sample.name.startswith("penstock_upstream")
    }
    name = up.url.split("/")[2]
    assert samples["penstock_upstream_requests_total", name, "ok"] == 1
    assert samples["penstock_upstream_open_streams", name, None] == 0
    assert samples["penstock_upstream_first_token_seconds_count", name, None] == 1
