"""The backend against an upstream that misbehaves in every known way, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.backends import Backend, build_backend
from penstock.errors import ConfigError
from penstock.event import Completion, Done, Event, Failed, Usage, fold
from penstock.job import Batch, Claim, Job, Message, Sampling
from penstock.metrics import Metrics
from penstock.piece import Piece, Token, ToolCall, join
from tests.upstream import Upstream, tokens_of
from tests.waiting import wait_until

KEY = "sk-very-secret-1"
PROMPT = "one two three"
IMPATIENT: dict[str, Any] = {
    "first_token_s": "0.5",
    "idle_s": "0.5",
}  # only where an upstream is to hang: a busy machine is slow


class Watch:
    """What a backend reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], float]] = []

    def __call__(self, metric: str, labels: Mapping[str, str], value: float) -> None:
        self.seen.append((metric, dict(labels), value))

    def outcomes(self) -> list[str]:
        return [labels["outcome"] for metric, labels, _ in self.seen if metric == "upstream_requests_total"]

    def fallbacks(self) -> list[tuple[str, str]]:
        return [(one["tier"], one["reason"]) for metric, one, _ in self.seen if metric == "upstream_fallbacks_total"]

    def ups(self) -> list[float]:
        return [value for metric, _, value in self.seen if metric == "upstream_up"]


@asynccontextmanager
async def running(url: str, watch: Watch | None = None, /, **options: str) -> AsyncIterator[Backend]:
    made = build_backend("openai", {"url": url, "eject_s": "0.05", **options})
    made.name, made.observer = "m", watch
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def claim(id: str = "j", tokens: tuple[Token, ...] = (), timeout_s: float = 60.0, **fields: Any) -> Claim:
    talk = fields.pop("messages", None)
    sampling = Sampling(**{"max_tokens": 5, **fields})
    job = Job(id=id, model="m", prompt=None if talk else PROMPT, messages=talk, sampling=sampling)
    return Claim(job, 1, time.monotonic() + timeout_s, tokens)


async def ask(backend: Backend, one: Claim | None = None) -> Completion:
    one = one or claim()
    events: list[Event] = [event async for event in backend.generate(Batch((one,)))]
    return fold(events, Completion(one.tokens))


def code(done: Completion) -> str:
    assert isinstance(done.end, Failed)
    return done.end.code


def is_whole(done: Completion, num: int = 5) -> bool:
    return done.text == "".join(tokens_of(PROMPT, num)) and isinstance(done.end, Done)


# ── what servers really send ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "mood", ["ok", "no_done", "only_done", "usage_in_last", "no_usage", "crlf", "bytewise", "one_write"]
)
async def test_every_form_of_a_stream(mood: str) -> None:
    async with Upstream(mood) as up, running(up.url) as backend:
        done = await ask(backend)
    assert is_whole(done)
    assert isinstance(done.end, Done)
    assert done.end.finish_reason == ("stop" if mood == "only_done" else "length")
    assert done.end.usage == Usage(3, 5), "the upstream's, or counted here"
    assert up.seen[0].body["model"] == "m"


async def test_what_stands_beside_the_text_comes_through() -> None:
    talk = (Message("user", "Hi"),)
    async with Upstream() as up, running(up.url, engine="vllm") as backend:
        for mood in ("reasoning", "reasoning_content"):
            up.moods.append(mood)
            done = join((await ask(backend, claim(messages=talk))).tokens)
            assert done.reasoning
            assert done.text
        up.moods.append("tools")
        called = await ask(backend, claim(messages=talk))
        assert join(called.tokens).tool_calls == (ToolCall(0, "call_1", "f", '{"a": 1}'),)
        assert isinstance(called.end, Done)
        assert called.end.finish_reason == "tool_calls"
        for one in (claim(messages=talk, logprobs=2), claim(logprobs=0)):
            scored = (await ask(backend, one)).tokens
            assert all(isinstance(token, Piece) and len(token.logprobs) == 1 for token in scored)


async def test_a_connection_is_used_again_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UP_KEY", f" {KEY}\n")
    async with Upstream(key=KEY) as up, running(up.url, key_env="UP_KEY", model="theirs") as backend:
        for _ in range(5):
            assert is_whole(await ask(backend))
    assert (up.num_connections, up.seen[0].body["model"]) == (1, "theirs")


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refusal_is_the_clients_own_error_and_is_tried_once() -> None:
    async with Upstream("status=422") as up, running(up.url) as backend:
        end = (await ask(backend)).end
        assert isinstance(end, Failed)
        assert (end.code, end.param, end.message) == ("invalid_request", "temperature", "No:")
        up.mood = "flat_error"
        end = (await ask(backend)).end
        assert isinstance(end, Failed)
        assert (end.code, end.message) == ("invalid_request", "too long")
    assert len(up.seen) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
async def test_no_key_leaks(status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("UP_KEY", KEY)
    watch = Watch()
    caplog.set_level(logging.DEBUG)
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(Upstream(f"status={status}", key=KEY))
        backend = await stack.enter_async_context(running(up.url, watch, key_env="UP_KEY", retry_s="0"))
        if status == 401:
            up.key = "another"
        done = await ask(backend)
        assert KEY not in f"{done.end!r} {watch.seen} {backend.capabilities} {vars(backend)}"
    assert KEY not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("penstock"))
    expected = {400: "invalid_request", 429: "overloaded"}.get(status, "backend_error")
    assert code(done) == expected
    if status == 404:
        assert isinstance(done.end, Failed)
        assert "'m'" in done.end.message


@pytest.mark.parametrize(
    "mood",
    [
        "status=500", "hang", "hang_after=0", "comments_after=0", "drop", "cut_after=0", "end_after=0", "abort_after=0",
        "error_after=0", "wrong_json_after=0", "html", "json", "endless_line", "endless_event", "gzip", "status=503",
        "status=429",
    ],
)  # fmt: skip
async def test_before_the_first_token_everything_is_tried_elsewhere(mood: str) -> None:
    watch = Watch()
    limits: dict[str, Any] = IMPATIENT if mood.startswith(("hang", "comments")) else {}
    async with Upstream(mood) as bad, Upstream() as good, running(f"{bad.url}+{good.url}", watch, **limits) as backend:
        dones = [await ask(backend) for _ in range(2)]
        assert all(is_whole(done) for done in dones)
        assert len(bad.seen) >= 1
        await wait_until(lambda: bad.num_open == 0, "the bad stream to be let go")
    assert watch.outcomes().count("ok") == 2


@pytest.mark.parametrize(
    ("mood", "expected"),
    [
        ("cut_after=2", "worker_lost"),
        ("end_after=2", "worker_lost"),
        ("abort_after=2", "worker_lost"),
        ("hang_after=2", "worker_lost"),
        ("comments_after=2", "worker_lost"),
        ("error_after=2", "backend_error"),
        ("wrong_json_after=2", "backend_error"),
    ],
)
async def test_after_the_first_token_it_is_a_clear_error(mood: str, expected: str) -> None:
    limits: dict[str, Any] = IMPATIENT if mood.startswith(("hang", "comments")) else {}
    async with Upstream(mood) as up, running(up.url, **limits) as backend:
        done = await ask(backend)
    assert code(done) == expected
    assert list(done.tokens) == tokens_of(PROMPT, 2)
    assert isinstance(done.end, Failed)
    assert "SECRET" not in done.end.message
    assert len(up.seen) == 1


@pytest.mark.parametrize("mood", ["cut_after=2", "end_after=2", "hang_after=2", "error_after=2"])
@pytest.mark.parametrize("messages", [None, (Message("user", "Hi"),)])
async def test_where_it_resumes_the_answer_goes_on_at_another(mood: str, messages: Any) -> None:
    limits: dict[str, Any] = IMPATIENT if mood.startswith("hang") else {}
    async with AsyncExitStack() as stack:
        bad, good = await stack.enter_async_context(Upstream()), await stack.enter_async_context(Upstream())
        made = running(f"{bad.url}+{good.url}", resumes="prompt+messages", tries="1", **limits)
        backend = await stack.enter_async_context(made)
        plain = await ask(backend, claim(messages=messages))
        bad.moods.append(mood)
        good.moods.append(mood)  # whichever is first; the other one, or the same, goes on
        done = await ask(backend, claim(messages=messages))
    assert done.text == plain.text
    assert isinstance(done.end, Done)
    assert done.end.usage.completion_tokens == 5


async def test_an_answer_of_a_dead_worker_goes_on() -> None:
    async with Upstream() as up, running(up.url, resumes="prompt") as backend:
        done = await ask(backend, claim(tokens=tuple(tokens_of(PROMPT, 3))))
        assert is_whole(done)
        lost = await ask(backend, claim(tokens=("a",), messages=(Message("user", "Hi"),)))
        assert code(lost) == "worker_lost"
    assert up.seen[0].body["prompt"] == PROMPT + "".join(tokens_of(PROMPT, 3))


async def test_an_upstream_that_ignores_max_tokens_is_cut() -> None:
    async with Upstream("ignores_max_tokens") as up, running(up.url) as backend:
        done = await ask(backend)
        assert isinstance(done.end, Done)
        assert len(done.tokens) < 200
        await wait_until(lambda: up.num_open == 0, "its stream to be closed")


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_storm_of_429_is_ridden_out() -> None:
    watch = Watch()
    async with Upstream(retry_after="0.05") as up, running(up.url, watch) as backend:
        up.moods.extend(["status=429"] * 6)
        assert is_whole(await ask(backend))
        up.retry_after = ""
        up.moods.extend(["status=429"])
        assert is_whole(await ask(backend))
    assert watch.outcomes() == ["rate_limited"] * 6 + ["ok", "rate_limited", "ok"]
    assert watch.ups() == [1.0], "a busy upstream is not ejected"


async def test_a_retry_after_beyond_the_deadline_is_told_at_once() -> None:
    async with Upstream("status=429", retry_after="50") as up, running(up.url, retry_s="60") as backend:
        end = (await ask(backend, claim(timeout_s=20))).end
        assert isinstance(end, Failed)
        assert end.code == "overloaded"
        assert end.retry_after_s == pytest.approx(50, abs=5)
        assert code(await ask(backend, claim(timeout_s=20))) == "overloaded"
    assert len(up.seen) == 1, "it has said when to come back"


async def test_an_engine_that_restarts_costs_nobody_an_answer() -> None:
    up = await Upstream().__aenter__()
    port = up.port
    watch = Watch()
    async with running(up.url, watch) as backend:
        assert is_whole(await ask(backend))
        await up.stop()
        asking = [asyncio.create_task(ask(backend, claim(str(i)))) for i in range(8)]
        await wait_until(lambda: "unreachable" in watch.outcomes(), "somebody to notice")
        async with Upstream(port=port):
            assert all(is_whole(done) for done in await asyncio.gather(*asking))


async def test_half_open_sockets_are_noticed() -> None:
    """A listener whose backlog takes connections that nobody ever reads."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        async with Upstream() as up, running(f"{url}+{up.url}", **IMPATIENT) as backend:
            assert is_whole(await ask(backend))


async def test_cancellation_closes_the_upstreams_stream_at_once() -> None:
    async with Upstream("hang_after=2") as up, running(up.url, idle_s="60", first_token_s="60") as backend:
        for mood, num in (("hang", 0), ("hang_after=2", 2)):
            up.moods.append(mood)
            one, events = claim(), list[Event]()

            async def collect(one: Claim = one, events: list[Event] = events) -> None:
                async for event in backend.generate(Batch((one,))):
                    events.append(event)

            collecting = asyncio.create_task(collect())
            await wait_until(lambda: up.num_open == 1 and len(events) == num, "the upstream to work")  # noqa: B023 - awaited here
            one.cancel("client")
            await wait_until(lambda: up.num_open == 0, "the upstream to stop")
            await collecting
            assert up.seen[-1].left


async def test_a_consumer_that_stands_still_is_not_the_upstreams_silence() -> None:
    async with Upstream() as up, running(up.url, idle_s="0.2") as backend:
        stream = backend.stream(claim().job)
        seen = [await anext(stream)]
        until = time.monotonic() + 0.4
        await wait_until(lambda: time.monotonic() > until, "twice idle_s")
        seen += [token async for token in stream]
    assert seen[:-1] == tokens_of(PROMPT, 5)


async def test_a_job_that_waits_for_an_upstream_can_be_cancelled() -> None:
    async with Upstream("status=429", retry_after="20") as up, running(up.url) as backend:
        one = claim()
        asking = asyncio.create_task(ask(backend, one))
        await wait_until(lambda: up.seen, "the first try")
        one.cancel("client")
        assert (await asking).end is None


# ── many ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_load_is_spread_and_slots_are_kept() -> None:
    async with Upstream(token_s=0.005) as one, Upstream(token_s=0.005) as two:
        async with running(f"{one.url}+{two.url}", slots="3") as backend:
            claims = tuple(claim(str(i)) for i in range(24))
            events: dict[str, list[Event]] = {c.job.id: [] for c in claims}
            async for event in backend.generate(Batch(claims)):
                events[event.job_id].append(event)
            assert all(is_whole(fold(each)) for each in events.values())
        assert (one.max_open, two.max_open) == (3, 3)
        assert len(one.seen) + len(two.seen) == 24
        assert min(len(one.seen), len(two.seen)) >= 8


async def test_a_bad_replica_is_ejected_and_comes_back() -> None:
    watch = Watch()
    async with Upstream("drop") as bad, Upstream() as good, running(f"{bad.url}+{good.url}", watch) as backend:
        for _ in range(8):
            assert is_whole(await ask(backend))
        assert watch.ups() == [1.0, 1.0, 0.0]
        num = len(bad.seen)
        assert num < 8
        bad.mood = "ok"

        async def is_back() -> bool:
            await ask(backend)
            return watch.ups()[-1] == 1.0

        deadline = time.monotonic() + 5
        while not await is_back():
            assert time.monotonic() < deadline, "the replica to be used again"
    assert len(bad.seen) > num


async def test_with_a_health_check_no_request_tries_an_upstream_that_is_ill() -> None:
    watch = Watch()
    async with Upstream(health=503) as ill, Upstream() as good:
        both = f"{ill.url}+{good.url}"
        async with running(both, watch, engine="vllm") as backend:
            await wait_until(lambda: 0.0 in watch.ups(), "the first check")
            for _ in range(4):
                assert is_whole(await ask(backend))
            assert ill.seen == []
            await wait_until(lambda: ill.num_checks >= 3, "more checks")
            ill.health = 200
            num = ill.num_checks
            await wait_until(lambda: ill.num_checks > num, "a check that passes")
            for _ in range(4):
                assert is_whole(await ask(backend))
            await wait_until(lambda: watch.ups()[-1] == 1.0, "it to be back")
    assert ill.seen


async def test_tiers_in_their_order_each_with_its_own_model_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", KEY)
    watch = Watch()
    async with Upstream("status=500") as own, Upstream("hang") as region, Upstream(key=KEY) as hosted:
        options = {"url2": region.url, "url3": hosted.url, "model3": "big", "key_env3": "HOSTED_KEY"}
        async with running(own.url, watch, **IMPATIENT, **options) as backend:
            assert is_whole(await ask(backend))
            own.mood = "ok"
            assert is_whole(await ask(backend))
    assert hosted.seen[0].body["model"] == "big"
    assert "authorization" not in own.seen[0].headers
    assert watch.fallbacks() == [("1", "server_error"), ("1", "server_error"), ("2", "timeout")]
    assert (len(own.seen), len(hosted.seen)) == (2, 1)


async def test_a_full_tier_overflows_into_the_next() -> None:
    watch = Watch()
    async with Upstream("hang") as own, Upstream() as hosted:
        options = {"slots": "1", "url2": hosted.url, "first_token_s": "30"}
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


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "option url is missing"),
        ({"url": ""}, "url is missing"),
        ({"url": "localhost:8000"}, "url must be"),
        ({"url": "http://user:SECRET@h/v1"}, "key_env names the variable"),
        ({"url": "http://h", "url3": "http://h"}, "url3 without url2"),
        ({"url": "http://h", "model2": "x"}, "url2 is missing"),
        ({"url": "http://h", "accepts": "stop+beams"}, "beams is not known"),
        ({"url": "http://h", "resumes": "maybe"}, "resumes must be"),
        ({"url": "http://h", "resumes": "prompt", "url2": "http://g", "engine2": "openai"}, "engine of tier 2"),
        ({"url": "http://h", "resumes": "prompt+messages", "engine": "tgi"}, "resumes=messages"),
        ({"url": "http://h", "health": "health"}, "health must be"),
        ({"url": "http://h", "slots": "0"}, "slots must be"),
        ({"url": "http://h", "tries": "0"}, "tries, max_failures"),
        ({"url": "http://h", "idle_s": "0"}, "above 0"),
        ({"url": "http://h", "engine": "gpt"}, "vllm"),
        ({"url": "http://h", "key_env": "sk-SECRET"}, "must be the name of an environment variable"),
        ({"url": "http://h", "key_env": "SECRET_THAT_IS_A_KEY"}, "not set"),
        ({"url": "http://h", "key_env": "BROKEN_KEY"}, "cannot stand in a header"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN_KEY", "SECRET SECRET")
    with pytest.raises(ConfigError, match=says) as caught:
        build_backend("openai", options)
    assert "SECRET" not in caught.value.message


def test_what_is_accepted_is_what_every_tier_honours_or_what_is_declared() -> None:
    def accepts(**options: str) -> tuple[str, ...]:
        return build_backend("openai", {"url": "http://h", **options}).capabilities.accepts

    assert set(accepts()) == {"temperature", "top_p", "stop"}
    assert {"tools", "top_k", "images", "logprobs"} <= set(accepts(engine="vllm"))
    assert "top_k" not in accepts(engine="vllm", url2="http://g", engine2="openai")
    assert accepts(accepts="stop+tools", engine="vllm") == ("stop", "tools")
    can = build_backend("openai", {"url": "http://h", "resumes": "prompt", "max_tokens": "9"}).capabilities
    assert (can.resumes, can.continuous, can.max_tokens) == (True, True, 9)
