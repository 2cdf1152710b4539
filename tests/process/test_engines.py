"""Penstock before engines that are processes of their own: they are killed, frozen and started again by pid."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support import reading
from tests.support.programs import site
from tests.support.upstream import tokens_of
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(90)

ROOT = Path(__file__).parents[2]
NUM, TOKENS = 24, 60
KEY = "sk-of-the-process-test"


class Engine:
    """One upstream in a process of its own."""

    def __init__(self, *args: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "tests.support.upstream", "--port", str(port), *args]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def url(self) -> str:
        return f"http://{self.name}/v1"

    @property
    def name(self) -> str:
        """As metrics name it."""
        return f"127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Whatever a test puts in here is ended with it."""
    started: list[Engine] = []
    yield started
    for engine in started:
        engine.stop()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with reading.client() as client:
        yield client


def start(engines: list[Engine], *args: str, port: int = 0) -> Engine:
    engines.append(Engine(*args, port=port))
    return engines[-1]


async def metric(http: httpx2.AsyncClient, url: str, name: str, **labels: str) -> float:
    return reading.metric((await http.get(f"{url}/metrics")).text, f"penstock_upstream_{name}", **labels)


async def under_load(
    http: httpx2.AsyncClient, url: str, victim: Engine, number: int, num: int = NUM
) -> list[reading.Answer]:
    """`num` streams, and a signal to `victim` once it has some of them."""
    tasks = [asyncio.create_task(reading.stream(http, url, prompt=f"p {i}", max_tokens=TOKENS)) for i in range(num)]

    async def is_busy() -> bool:
        return await metric(http, url, "first_token_seconds_count", upstream=victim.name) >= num / 4

    await wait_until_async(is_busy, "the victim to have work")
    victim.signal(number)
    return await asyncio.gather(*tasks)


async def until_it_works(http: httpx2.AsyncClient, url: str, engine: Engine) -> None:
    before = await metric(http, url, "requests_total", upstream=engine.name, outcome="ok")

    async def is_back() -> bool:
        await reading.whole(http, url, model="m", prompt="p", max_tokens=2)
        return await metric(http, url, "requests_total", upstream=engine.name, outcome="ok") > before

    await wait_until_async(is_back, "the new engine to get work")


def is_whole(answer: reading.Answer, number: int) -> bool:
    return answer.end == "done" and answer.tokens == tokens_of(f"p {number}", TOKENS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_where_it_resumes_no_client_notices_the_death_of_an_engine(
    engines: list[Engine], http: httpx2.AsyncClient, number: int
) -> None:
    one, two = start(engines, "--token-ms", "20"), start(engines, "--token-ms", "20")
    model = f"m=openai:url={one.url}+{two.url},resumes=prompt,first_token_s=3,idle_s=1"
    with site() as built:
        built.serve("--model", model, "--engine-stall-s", "1")
        url = built.gateways[0]
        answers = await under_load(http, url, one, number)
        assert [is_whole(answer, i) for i, answer in enumerate(answers)] == [True] * NUM
        assert await metric(http, url, "requests_total", outcome="ok") == NUM
        reason = "cut" if number == signal.SIGKILL else "timeout"
        assert await metric(http, url, "requests_total", outcome=reason) >= 1


async def test_without_that_only_the_dead_engines_answers_are_lost_and_it_is_used_again(
    engines: list[Engine], http: httpx2.AsyncClient
) -> None:
    one, two = start(engines, "--token-ms", "20"), start(engines, "--token-ms", "20")
    with site() as built:
        built.serve("--model", f"m=openai:url={one.url}+{two.url},engine=vllm")
        url = built.gateways[0]
        answers = await under_load(http, url, one, signal.SIGKILL)
        lost = [answer for i, answer in enumerate(answers) if not is_whole(answer, i)]
        assert 0 < len(lost) < NUM
        assert {answer.data["error"]["code"] for answer in lost} == {"worker_lost"}
        again = await asyncio.gather(*(reading.stream(http, url, prompt=f"p {i}", max_tokens=TOKENS) for i in range(8)))
        assert all(is_whole(answer, i) for i, answer in enumerate(again)), "the other one answers"
        assert await metric(http, url, "up", upstream=one.name) == 0
        start(engines, port=one.port)
        await until_it_works(http, url, one)
        assert await metric(http, url, "up", upstream=one.name) == 1


async def test_a_whole_tier_dies_the_hosted_one_answers_and_is_left_again(
    engines: list[Engine], http: httpx2.AsyncClient
) -> None:
    own, hosted = start(engines), start(engines, "--key", KEY)
    second = f"upstreams.2.url={hosted.url},upstreams.2.key_env=HOSTED_KEY,upstreams.2.model=big"
    model = f"m=openai:upstreams.1.url={own.url},{second},aliases=gpt-4o"
    with site() as built:
        program = built.serve("--model", model, "--model", "mock=mock", "--log-level", "debug", env={"HOSTED_KEY": KEY})
        url = built.gateways[0]
        assert (await reading.whole(http, url, model="mock", prompt="p")).status_code == 200, "backends mix"
        assert is_whole(await reading.stream(http, url, model="gpt-4o", prompt="p 0", max_tokens=TOKENS), 0)
        assert await metric(http, url, "requests_total", model="m", upstream=own.name, outcome="ok") == 1
        own.stop()
        for number in range(6):
            answer = await reading.stream(http, url, model="m", prompt=f"p {number}", max_tokens=TOKENS)
            assert is_whole(answer, number)
        assert await metric(http, url, "requests_total", upstream=hosted.name, outcome="ok") == 6
        assert await metric(http, url, "fallbacks_total", tier="1") == 6
        assert await metric(http, url, "fallbacks_total", tier="1", reason="unreachable") >= 3
        assert await metric(http, url, "fallbacks_total", tier="1", reason="ejected") >= 1
        start(engines, port=own.port)
        await until_it_works(http, url, own)
        text = (await http.get(f"{url}/metrics")).text
        assert KEY not in program.output() + text


async def test_clients_that_leave_stop_the_engine(engines: list[Engine], http: httpx2.AsyncClient) -> None:
    one = start(engines, "--token-ms", "50")
    with site() as built:
        built.serve("--model", f"m=openai:url={one.url}")
        url = built.gateways[0]
        left = await reading.stream(http, url, stop_after=1, prompt="long", max_tokens=500)

        async def is_closed() -> bool:
            return await metric(http, url, "open_streams") == 0

        await wait_until_async(is_closed, "the engine's stream to be closed")
        assert await metric(http, url, "requests_total", outcome="cancelled") == 1
        assert (await http.get(f"{url}/v1/requests/{left.request_id}")).json()["state"] == "cancelled"


async def test_errors_reach_the_client_as_its_own_or_as_ours(engines: list[Engine], http: httpx2.AsyncClient) -> None:
    models = []
    for name, mood in (("bad", "status=400"), ("shut", "status=401"), ("none", "status=404"), ("deaf", "hang")):
        models += ["--model", f"{name}=openai:url={start(engines, '--mood', mood).url},first_token_s=1,tries=3"]
    with site() as built:
        built.serve(*models, "--engine-stall-s", "1")
        url = built.gateways[0]
        asked = [
            reading.whole(http, url, model=name, prompt="p", timeout_s=4) for name in ("bad", "shut", "none", "deaf")
        ]
        answers = await asyncio.gather(*asked)
        errors = [answer.json()["error"] for answer in answers]
        assert [answer.status_code for answer in answers] == [400, 502, 502, 504]
        assert [error["code"] for error in errors] == ["invalid_request", *["backend_error"] * 2, "deadline_exceeded"]
        assert errors[0]["param"] == "temperature"
        refused = await reading.whole(http, url, model="bad", prompt="p", seed=1)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "seed"), "it was not declared"
        assert (await http.get(f"{url}/readyz")).status_code == 200, "an engine that is silent is no hang of ours"


async def test_a_photo_travels_through_redis(engines: list[Engine], http: httpx2.AsyncClient, redis_url: str) -> None:
    """As large as a gateway takes one, to a model that takes images; to another one it is too large."""
    photo = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (15 * 2**20)}}
    body = {"messages": [{"role": "user", "content": [photo]}], "max_tokens": 3}
    url = start(engines).url
    with site(redis_url) as built:
        built.worker("--model", f"eyes=openai:url={url},images=data", "--model", f"words=openai:url={url}")
        built.gateway()
        route = f"{built.gateways[0]}/v1/chat/completions"
        answer = await http.post(route, json={"model": "eyes", **body})
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 3)
        refused = await http.post(route, json={"model": "words", **body})
        assert refused.status_code == 413
        assert "PENSTOCK_MAX_BODY_BYTES" in refused.json()["error"]["message"]
