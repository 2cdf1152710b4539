"""The backend against upstreams that fail in every known way, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from penstock.event import Usage
from penstock.job import Message
from tests.support.asking import PROMPT, TALK, Watch, ask, claim, done_of, failed_of, is_whole, patience, running
from tests.support.upstream import Upstream, tokens_of
from tests.support.waiting import wait_until, wait_until_async

KEY = "sk-very-secret-1"

# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mood", "says", "param"),
    [("status=400", "No:", "temperature"), ("status=422", "No:", "temperature"), ("flat_error", "too long", None)],
)
async def test_a_refusal_is_the_clients_own_error_and_is_tried_once(mood: str, says: str, param: str | None) -> None:
    async with Upstream(mood) as up, Upstream() as other, running(f"{up.url}+{other.url}") as backend:
        error = failed_of(await ask(backend))
    assert (error.code, error.message, error.param) == ("invalid_request", says, param)
    assert (len(up.seen), len(other.seen)) == (1, 0)


@pytest.mark.parametrize(
    ("mood", "code", "says"),
    [
        ("status=400", "invalid_request", "No: ***"),
        ("status=401", "backend_error", "credentials"),
        ("status=403", "backend_error", "credentials"),
        ("status=404", "backend_error", "'m'"),
        ("status=418", "backend_error", "HTTP 418"),
        ("status=429", "overloaded", "is at capacity"),
        ("status=500", "backend_error", "HTTP 500"),
        ("another key", "backend_error", "credentials"),
    ],
)
async def test_an_upstreams_error_becomes_a_clear_error_and_no_key_leaks(
    mood: str, code: str, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("UP_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    watch, is_wrong = Watch(), mood == "another key"
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(Upstream("ok" if is_wrong else mood, key="other" if is_wrong else KEY))
        backend = await stack.enter_async_context(running(up.url, watch, key_env="UP_KEY", retry_s="0"))
        error = failed_of(await ask(backend))
        assert KEY not in f"{error!r} {watch.seen} {backend.capabilities} {vars(backend)} {caplog.text}"
    assert error.code == code
    assert says in error.message
    assert up.seen[0].headers["authorization"] == f"Bearer {KEY}"


# ── before the first token ───────────────────────────────────────────────────────────────────────────────────────

OUTCOMES = {
    **dict.fromkeys(["status=401", "status=403"], "credentials"),
    **dict.fromkeys(["drop", "cut_after=0", "end_after=0", "abort_after=0"], "cut"),
    **dict.fromkeys(
        ["html", "json", "gzip", "endless_line", "endless_event", "wrong_json_after=0"],
        "malformed",
    ),
    **dict.fromkeys(["status=500", "status=502", "status=503", "error_after=0"], "server_error"),
    **dict.fromkeys(["hang", "hang_after=0", "comments_after=0"], "timeout"),
    "status=404": "not_found",
    "status=408": "refused",
    "status=429": "rate_limited",
}


@pytest.mark.parametrize(("mood", "outcome"), OUTCOMES.items())
async def test_before_the_first_token_everything_is_tried_elsewhere(mood: str, outcome: str) -> None:
    watch = Watch()
    async with (
        Upstream(mood) as bad,
        Upstream() as good,
        running(f"{bad.url}+{good.url}", watch, **patience(mood)) as backend,
    ):
        for _ in range(2):
            assert is_whole(await ask(backend))
        await wait_until(lambda: bad.num_open == 0, "the bad stream to be let go")
    assert (len(bad.seen), len(good.seen)) == (2, 2)
    assert watch.outcomes() == [outcome, "ok"] * 2


@pytest.mark.parametrize("mood", ["status=503", "status=500", "drop", "wrong_json_after=0"])
async def test_a_lone_replica_is_tried_again(mood: str) -> None:
    async with Upstream() as up, running(up.url) as backend:
        up.moods.extend([mood, mood])
        assert is_whole(await ask(backend))
    assert len(up.seen) == 3


@pytest.mark.parametrize("num_replicas", [1, 2])
async def test_requests_that_provoke_their_own_500_eject_no_replica(num_replicas: int) -> None:
    watch = Watch()
    async with AsyncExitStack() as stack:
        ups = [await stack.enter_async_context(Upstream("status=500")) for _ in range(num_replicas)]
        url = "+".join(up.url for up in ups)
        backend = await stack.enter_async_context(running(url, watch, max_failures="1"))
        for number in range(4):
            error = failed_of(await ask(backend, claim(str(number))))
            assert (error.code, error.message) == ("backend_error", "The model's upstream failed (HTTP 500): No:")
        for up in ups:
            up.mood = "ok"
        num = sum(len(up.seen) for up in ups)
        assert is_whole(await ask(backend, claim("innocent")))
        assert sum(len(up.seen) for up in ups) == num + 1
    assert set(watch.ups()) == {1.0}


async def test_a_replica_that_fails_what_another_answers_is_ejected() -> None:
    watch = Watch()
    async with (
        Upstream("status=500") as bad,
        Upstream() as good,
        running(f"{bad.url}+{good.url}", watch, max_failures="3", eject_s="60") as backend,
    ):
        for number in range(12):
            assert is_whole(await ask(backend, claim(str(number))))
        assert len(bad.seen) == 3
    assert watch.ups() == [1.0, 1.0, 0.0]


async def test_501_is_the_requests_own_fault() -> None:
    watch = Watch()
    async with Upstream("status=501") as up, running(up.url, watch, max_failures="1") as backend:
        error = failed_of(await ask(backend))
        assert (error.code, error.message) == ("invalid_request", "No:")
    assert len(up.seen) == 1
    assert watch.ups() == [1.0]


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


async def test_one_callers_limit_at_an_upstream_shuts_out_no_other() -> None:
    async with Upstream(retry_after="1e9") as up, running(up.url, retry_s="0.2") as backend:
        up.moods.append("status=429")
        error = failed_of(await ask(backend, claim("a", caller="alice")))
        assert (error.code, error.retry_after_s) == ("overloaded", 60.0), "and not for 30 years"
        assert is_whole(await ask(backend, claim("b", caller="bob")))
        assert failed_of(await ask(backend, claim("c", caller="alice"))).code == "overloaded"
        assert len(up.seen) == 2, "alice is to leave it alone, and does"


async def test_nor_does_it_shut_out_others_who_embed() -> None:
    async with Upstream(retry_after="50") as up, running(up.url, task="embed", retry_s="0.2") as backend:
        up.moods.append("status=429")
        assert failed_of(await ask(backend, claim("a", inputs=("x",), caller="alice"))).code == "overloaded"
        assert done_of(await ask(backend, claim("b", inputs=("x",), caller="bob"))).finish_reason == "stop"


async def test_an_image_is_fetched_by_no_engine_that_is_not_declared_to() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    talk = (Message("user", "", parts=(image,)),)
    async with Upstream() as up:
        async with running(up.url) as backend:
            assert failed_of(await ask(backend, claim(messages=talk))).code == "unsupported_parameter"
        assert up.seen == []
        async with running(up.url, images="any") as backend:
            done_of(await ask(backend, claim(messages=talk)))


async def test_how_long_a_retry_after_is_believed_is_an_option() -> None:
    async with Upstream("status=429", retry_after="86400") as up, running(up.url, retry_s="0", max_rest_s="7") as one:
        assert failed_of(await ask(one)).retry_after_s == 7.0


@pytest.mark.parametrize("length", [30_000, 200_000])
async def test_an_answer_that_is_too_long_for_its_tokens_is_an_error(length: int) -> None:
    async with (
        Upstream(f"long_tokens={length}") as up,
        Upstream() as other,
        running(f"{up.url}+{other.url}") as backend,
    ):
        said = await ask(backend, claim(max_tokens=5))
    error = failed_of(said)
    assert error.code == "backend_error"
    assert error.message == "The model's upstream sent more than 70656 characters, though max_tokens is 5."
    assert len(said.text) < 70_656
    assert (len(up.seen), len(other.seen)) == (1, 0)


async def test_long_tokens_are_not_an_error() -> None:
    async with Upstream("long_tokens=1000") as up, running(up.url) as backend:
        said = await ask(backend, claim(max_tokens=100))
    assert len(said.text) == 100_000
    assert done_of(said).finish_reason == "length"


async def test_an_engine_that_starts_late_or_restarts_costs_no_answer() -> None:
    async with Upstream() as up:
        port = up.port
    watch = Watch()
    async with running(up.url, watch) as backend:
        for _ in range(2):
            num = len(watch.outcomes())
            asking = [asyncio.create_task(ask(backend, claim(str(i)))) for i in range(8)]
            await wait_until(lambda: watch.outcomes()[num:].count("unreachable"), "somebody to notice")  # noqa: B023 - awaited here
            async with Upstream(port=port):
                assert all(is_whole(said) for said in await asyncio.gather(*asking))


async def test_half_open_sockets_are_noticed() -> None:
    """A listener whose backlog takes connections that are never read."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        async with Upstream() as up, running(f"{url}+{up.url}", **patience("hang")) as backend:
            assert is_whole(await ask(backend))


# ── after the first token ────────────────────────────────────────────────────────────────────────────────────────

ENDS = {
    **dict.fromkeys(["cut_after=2", "end_after=2", "abort_after=2", "hang_after=2", "comments_after=2"], "worker_lost"),
    **dict.fromkeys(["error_after=2", "wrong_json_after=2"], "backend_error"),
}


@pytest.mark.parametrize(("mood", "code"), ENDS.items())
async def test_after_the_first_token_it_is_a_clear_error(mood: str, code: str) -> None:
    async with (
        Upstream(mood) as bad,
        Upstream() as good,
        running(f"{bad.url}+{good.url}", **patience(mood)) as backend,
    ):
        said = await ask(backend)
    assert list(said.tokens) == tokens_of(PROMPT, 2)
    assert failed_of(said).code == code
    assert "SECRET" not in failed_of(said).message
    assert (len(bad.seen), len(good.seen)) == (1, 0), "another answer would be another answer"


@pytest.mark.parametrize("mood", ENDS)
@pytest.mark.parametrize("is_chat", [False, True])
async def test_where_it_resumes_an_answer_that_breaks_off_twice_is_whole(mood: str, is_chat: bool) -> None:
    one: dict[str, Any] = {"messages": TALK if is_chat else None}
    async with Upstream() as good, Upstream(mood) as bad, Upstream(mood) as worse:
        url = f"{good.url}+{bad.url}+{worse.url}"
        async with running(url, resumes="prompt+messages", tries="1", **patience(mood)) as backend:
            plain = await ask(backend, claim(**one))
            said = await ask(backend, claim(**one))  # at those that were not used yet, first
    assert [len(up.seen) for up in (good, bad, worse)] == [2, 1, 1]
    assert said.tokens == plain.tokens
    assert (done_of(said).finish_reason, done_of(said).usage) == ("length", done_of(plain).usage)
    begun, rest = "".join(map(str, said.tokens[:4])), good.seen[-1].body
    assert rest["max_tokens"] == 1
    if is_chat:
        assert rest["messages"][1:] == [{"role": "assistant", "content": begun}]
    else:
        assert rest["prompt"] == PROMPT + begun
        assert done_of(said).usage == Usage(3, 5)


# ── how long it is waited for ────────────────────────────────────────────────────────────────────────────────────


async def test_retry_after_is_honoured() -> None:
    async with Upstream(retry_after="0.4") as up, running(up.url) as backend:
        up.moods.append("status=429")
        began = time.monotonic()
        assert is_whole(await ask(backend))
        assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize(("retry_s", "timeout_s"), [("60", 20.0), ("5", 100.0)])
async def test_a_retry_after_that_is_too_long_is_an_error_at_once(retry_s: str, timeout_s: float) -> None:
    async with Upstream("status=429", retry_after="50") as up, running(up.url, retry_s=retry_s) as backend:
        for _ in range(2):
            error = failed_of(await ask(backend, claim(timeout_s=timeout_s)))
            assert error.code == "overloaded"
            assert error.retry_after_s == pytest.approx(50, abs=5)
    assert len(up.seen) == 1, "it has said when to come back"


async def test_nothing_is_tried_beyond_the_deadline() -> None:
    async with Upstream("status=503") as up, running(up.url, retry_s="60", tries="100") as backend:
        assert failed_of(await ask(backend, claim(timeout_s=0.5))).code == "backend_error"
    assert len(up.seen) < 10


async def test_a_job_that_waits_for_an_upstream_can_be_cancelled() -> None:
    async with Upstream("status=429", retry_after="20") as up, running(up.url) as backend:
        one = claim()
        asking = asyncio.create_task(ask(backend, one))
        await wait_until(lambda: up.seen, "the first try")
        one.cancel("client")
        assert (await asking).end is None


# ── replicas and tiers ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_bad_replica_is_ejected_and_used_again_later() -> None:
    watch = Watch()
    async with (
        Upstream("drop") as bad,
        Upstream() as good,
        running(f"{bad.url}+{good.url}", watch, max_failures="2") as backend,
    ):
        assert is_whole(await ask(backend))
        assert watch.ups() == [1.0, 1.0]
        assert is_whole(await ask(backend))
        assert watch.ups() == [1.0, 1.0, 0.0]
        for _ in range(6):
            assert is_whole(await ask(backend))
        assert len(bad.seen) < 8
        bad.mood = "ok"

        async def is_back() -> bool:
            return is_whole(await ask(backend)) and watch.ups()[-1] == 1.0

        await wait_until_async(is_back, "the replica to be used again")


async def test_with_a_health_check_no_request_tries_an_upstream_that_is_ill() -> None:
    watch = Watch()
    async with (
        Upstream("status=503", health=503) as ill,
        Upstream() as good,
        running(f"{ill.url}+{good.url}", watch, engine="vllm", max_failures="1") as backend,
    ):

        async def is_out() -> bool:
            return is_whole(await ask(backend)) and watch.ups()[-1] == 0.0

        async def is_back() -> bool:
            return is_whole(await ask(backend)) and watch.ups()[-1] == 1.0

        await wait_until(lambda: 0.0 in watch.ups(), "the first check")
        for is_found_out in (False, True):  # ill from the start; later by a request
            await wait_until_async(is_out, "it to be ejected")
            seen, checks = len(ill.seen), ill.num_checks
            await wait_until(lambda: ill.num_checks >= checks + 2, "more checks")  # noqa: B023 - awaited here
            assert all(is_whole(said) for said in await asyncio.gather(*(ask(backend) for _ in range(8))))
            assert len(ill.seen) == seen
            assert (seen > 0) == is_found_out
            ill.health, ill.mood = 200, "ok"
            await wait_until_async(is_back, "it to be found well, and used again")
            ill.health, ill.mood = 503, "status=503"
    assert good.num_checks == 1, "one that works is checked by its requests"


async def test_tiers_in_their_order_each_with_its_own_model_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", KEY)
    watch = Watch()
    async with Upstream("status=500") as own, Upstream("hang") as region, Upstream(key=KEY) as hosted:
        third = {"upstreams.3.url": hosted.url, "upstreams.3.model": "big", "upstreams.3.key_env": "HOSTED_KEY"}
        options = {"model": "ours", "upstreams.2.url": region.url, **third, **patience("hang")}
        async with running(own.url, watch, **options) as backend:
            assert is_whole(await ask(backend))
            own.mood = "ok"
            assert is_whole(await ask(backend)), "the first tier is asked first again"
    assert [up.seen[0].body["model"] for up in (own, region, hosted)] == ["ours", "m", "big"]
    assert "authorization" not in own.seen[0].headers
    assert watch.fallbacks() == [("1", "server_error"), ("1", "server_error"), ("2", "timeout")]
    assert [len(up.seen) for up in (own, region, hosted)] == [2, 1, 1]
