"""The main job with real processes: two gateways, two workers, one server; and the embedded default."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from tests.support import reading
from tests.support.programs import Site, site
from tests.support.servers import start_server
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=["redis", "memory"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Two gateways and two workers on a real server; or all in one process."""
    if request.param == "memory":
        with site() as built:
            built.serve()
            yield built
        return
    server = start_server()
    with site(server.url) as built:
        built.worker()
        built.worker()
        built.gateway()
        built.gateway()
        yield built
    server.stop()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with reading.client() as client:
        yield client


def _gateway(fleet: Site, i: int) -> str:
    return fleet.gateways[i % len(fleet.gateways)]


async def test_64_one_token_requests_at_once(fleet: Site, http: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(reading.stream(http, _gateway(fleet, i), prompt=f"one {i}", max_tokens=1) for i in range(64))
    )
    assert [len(answer.tokens) for answer in answers] == [1] * 64
    assert {answer.end for answer in answers} == {"done"}
    assert {answer.data["usage"]["completion_tokens"] for answer in answers} == {1}


async def test_500_streams_50_at_a_time(fleet: Site, http: httpx2.AsyncClient) -> None:
    gate = asyncio.Semaphore(50)

    async def one(i: int) -> reading.Answer:
        async with gate:
            return await reading.stream(http, _gateway(fleet, i), prompt=f"stream {i}", max_tokens=24)

    answers = await asyncio.gather(*(one(i) for i in range(500)))
    assert {len(answer.tokens) for answer in answers} == {24}
    assert {(answer.end, answer.data["finish_reason"]) for answer in answers} == {("done", "length")}
    assert len({answer.request_id for answer in answers}) == 500


async def test_200_whole_answers_at_once(fleet: Site, http: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(reading.whole(http, _gateway(fleet, i), prompt=f"whole {i}", max_tokens=40) for i in range(200))
    )
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        body = answer.json()
        assert body["usage"]["completion_tokens"] == 40
        assert body["request_id"] == answer.headers["x-request-id"]
        assert body["timings"]["queue_ms"] <= body["timings"]["ttft_ms"] <= body["timings"]["total_ms"]


async def test_same_prompt_same_text_streamed_or_whole(fleet: Site, http: httpx2.AsyncClient) -> None:
    streamed = await reading.stream(http, _gateway(fleet, 0), prompt="the same", max_tokens=30)
    whole = await reading.whole(http, _gateway(fleet, 1), prompt="the same", max_tokens=30)
    seeded = await reading.whole(http, _gateway(fleet, 1), prompt="the same", max_tokens=30, seed=7)
    assert streamed.text == whole.json()["text"]
    assert seeded.json()["text"] != streamed.text


async def test_a_lone_request_waits_no_longer_than_its_window(fleet: Site, http: httpx2.AsyncClient) -> None:
    for i in range(3):  # the first ones warm up
        await reading.stream(http, _gateway(fleet, i), prompt="warm", max_tokens=1)
    times = []
    for i in range(5):
        answer = await reading.stream(http, _gateway(fleet, i), prompt=f"lone {i}", max_tokens=4)
        times.append(answer.data["timings"]["ttft_ms"])
    assert statistics.median(times) <= 10 + 50


async def test_ids_name_the_position(fleet: Site, http: httpx2.AsyncClient) -> None:
    answer = await reading.stream(http, _gateway(fleet, 0), prompt="ids", max_tokens=5)
    assert [event_id.rsplit("-", 1)[1] for event_id in answer.ids] == ["1", "2", "3", "4", "5"]
    assert {event_id.partition("/")[0] for event_id in answer.ids} == {answer.request_id}


async def test_stop_strings_end_the_answer(fleet: Site, http: httpx2.AsyncClient) -> None:
    full = (await reading.whole(http, _gateway(fleet, 0), prompt="stops", max_tokens=40)).json()["text"]
    stop = full[len(full) // 2 :][:4]
    cut = (await reading.whole(http, _gateway(fleet, 0), prompt="stops", max_tokens=40, stop=stop)).json()
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == full[: full.index(stop)]


async def test_a_client_that_leaves_frees_its_slot(fleet: Site, http: httpx2.AsyncClient) -> None:
    url = _gateway(fleet, 0)
    before = await _running(fleet, http)

    async def leave() -> None:
        async with reading.client() as own:
            await reading.stream(own, url, stop_after=1, prompt="leaves", max_tokens=8000)

    await asyncio.gather(*(leave() for _ in range(10)))

    async def is_calm() -> bool:
        return await _running(fleet, http) <= before

    await wait_until_async(is_calm, "cancelled requests still run")


async def _running(fleet: Site, http: httpx2.AsyncClient) -> float:
    pages = [(await http.get(f"{url}/metrics")).text for url in fleet.gateways]
    return sum(reading.metric(page, "penstock_running") for page in pages)


async def test_metrics_count_requests_and_tokens(fleet: Site, http: httpx2.AsyncClient) -> None:
    url = _gateway(fleet, 0)
    labels = {"model": "mock", "endpoint": "/v1/generate", "outcome": "ok"}
    before = reading.metric((await http.get(f"{url}/metrics")).text, "penstock_requests_total", **labels)
    await reading.stream(http, url, prompt="count me", max_tokens=3)
    await reading.whole(http, url, prompt="count me too", max_tokens=3)
    page = (await http.get(f"{url}/metrics")).text
    assert reading.metric(page, "penstock_requests_total", **labels) == before + 2
    for name in (
        "penstock_queue_depth",
        "penstock_running",
        "penstock_queue_wait_seconds_count",
        "penstock_time_to_first_token_seconds_count",
        "penstock_inter_token_latency_seconds_count",
        "penstock_e2e_seconds_count",
    ):
        assert f"\n{name}" in page, name
    where = fleet.workers[0] if fleet.workers else url
    assert "penstock_batch_size_count" in (await http.get(f"{where}/metrics")).text


async def test_health(fleet: Site, http: httpx2.AsyncClient) -> None:
    for url in [*fleet.gateways, *fleet.workers]:
        for path in ("/livez", "/readyz", "/healthz", "/metrics"):
            assert (await http.get(url + path)).status_code == 200, url + path
