"""The request as an object, over real processes: looked at, resumed from any gateway, cancelled, asked for twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.callers.keys import create_key
from penstock.sse import Decoder, ServerEvent
from tests.support import reading
from tests.support.programs import Site, site
from tests.support.servers import start_server
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(60)

SLOW = "mock=mock:step_ms=20"


@pytest.fixture(scope="module", params=["redis", "memory"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Two gateways over a real server, or one process; the resume window is short."""
    if request.param == "memory":
        with site() as built:
            built.serve("--model", SLOW, "--resume-window-s", "1")
            yield built
        return
    server = start_server()
    with site(server.url) as built:
        built.worker("--model", SLOW, "--resume-window-s", "1")
        built.gateway("--resume-window-s", "1")
        built.gateway("--resume-window-s", "1")
        yield built
    server.stop()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with reading.client() as client:
        yield client


async def _events(
    http: httpx2.AsyncClient, url: str, stop_after: int | None = None, last: str | None = None
) -> list[ServerEvent]:
    events: list[ServerEvent] = []
    headers = {"last-event-id": last} if last else {}
    async with http.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200
        decoder = Decoder()
        async for chunk in response.aiter_bytes():
            events += decoder.feed(chunk)
            if stop_after is not None and len(events) >= stop_after:
                break
    return events


def _texts(events: list[ServerEvent]) -> list[str]:
    return [json.loads(event.data)["text"] for event in events if event.event == "token"]


async def _state(http: httpx2.AsyncClient, url: str, request_id: str) -> dict[str, Any]:
    answer = await http.get(f"{url}/v1/requests/{request_id}")
    assert answer.status_code == 200
    return dict(answer.json())


async def test_a_background_request_is_polled_and_read(fleet: Site, http: httpx2.AsyncClient) -> None:
    here, there = fleet.gateways[0], fleet.gateways[-1]
    accepted = await reading.whole(http, here, prompt="in the background", max_tokens=20, background=True)
    assert accepted.status_code == 202
    request_id = accepted.json()["request_id"]
    assert accepted.headers["location"] == f"/v1/requests/{request_id}"
    assert accepted.headers["x-request-id"] == request_id

    async def is_complete() -> bool:
        return bool((await _state(http, there, request_id))["state"] == "completed")

    await wait_until_async(is_complete, "it ran to its end")
    seen = await _state(http, there, request_id)
    expected = (await reading.whole(http, here, prompt="in the background", max_tokens=20)).json()
    assert seen["text"] == expected["text"]
    assert seen["usage"] == expected["usage"]
    assert seen["attempts"] == 1
    assert seen["timings"]["queue_ms"] <= seen["timings"]["ttft_ms"] <= seen["timings"]["total_ms"]
    events = await _events(http, f"{there}/v1/requests/{request_id}/events")
    assert "".join(_texts(events)) == expected["text"]
    assert events[-1].event == "done"
    listed = (await http.get(f"{here}/v1/requests", params={"limit": 5})).json()["data"]
    assert request_id in [one["request_id"] for one in listed]
    assert {one["text"] for one in listed} == {None}


async def test_a_broken_stream_is_taken_up_at_another_gateway(fleet: Site, http: httpx2.AsyncClient) -> None:
    here, there = fleet.gateways[0], fleet.gateways[-1]
    async with reading.client() as own:
        first = await reading.stream(own, here, stop_after=5, prompt="resume me", max_tokens=60, on_disconnect="resume")
    rest = await _events(http, f"{there}/v1/requests/{first.request_id}/events", last=first.ids[4])
    expected = (await reading.whole(http, here, prompt="resume me", max_tokens=60)).json()["text"]
    assert "".join(first.tokens[:5] + _texts(rest)) == expected
    assert json.loads(rest[0].data)["index"] == 5
    assert rest[-1].event == "done"


async def test_a_request_whose_client_does_not_return_is_cancelled(fleet: Site, http: httpx2.AsyncClient) -> None:
    async with reading.client() as own:
        left = await reading.stream(
            own, fleet.gateways[0], stop_after=1, prompt="never", max_tokens=2000, on_disconnect="resume"
        )
    seen = await _state(http, fleet.gateways[0], left.request_id)
    assert seen["state"] == "running"

    async def is_cancelled() -> bool:
        return bool((await _state(http, fleet.gateways[0], left.request_id))["state"] == "cancelled")

    await wait_until_async(is_cancelled, "the window is over")


async def test_a_stream_that_continues_is_there_later(fleet: Site, http: httpx2.AsyncClient) -> None:
    async with reading.client() as own:
        left = await reading.stream(
            own, fleet.gateways[0], stop_after=1, prompt="goes on", max_tokens=30, on_disconnect="continue"
        )
    events = await _events(http, f"{fleet.gateways[-1]}/v1/requests/{left.request_id}/events")
    assert len(_texts(events)) == 30
    assert events[-1].event == "done"


async def test_of_two_readers_the_last_ones_leaving_counts(fleet: Site, http: httpx2.AsyncClient) -> None:
    here, there = fleet.gateways[0], fleet.gateways[-1]
    async with reading.client() as own:
        first = asyncio.create_task(reading.stream(own, here, stop_after=20, prompt="two", max_tokens=200))

        async def newest() -> str:
            listed = (await http.get(f"{there}/v1/requests", params={"limit": 1})).json()["data"]
            return listed[0]["request_id"] if listed and listed[0]["state"] == "running" else ""

        await wait_until_async(newest, "it runs")
        request_id = await newest()
        second = asyncio.create_task(_events(http, f"{there}/v1/requests/{request_id}/events"))
        await first
    events = await second
    assert events[-1].event == "done"
    assert len(_texts(events)) == 200


async def test_cancel_from_anywhere(fleet: Site, http: httpx2.AsyncClient) -> None:
    here, there = fleet.gateways[0], fleet.gateways[-1]
    reading_on = asyncio.create_task(reading.stream(http, here, prompt="cancel me", max_tokens=3000))

    async def newest() -> str:
        listed = (await http.get(f"{there}/v1/requests", params={"limit": 1})).json()["data"]
        return listed[0]["request_id"] if listed and listed[0]["state"] == "running" else ""

    await wait_until_async(newest, "it runs")
    request_id = await newest()
    answer = await http.delete(f"{there}/v1/requests/{request_id}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    streamed = await reading_on
    assert (streamed.end, streamed.data["finish_reason"]) == ("done", "cancelled")
    again = await http.delete(f"{there}/v1/requests/{request_id}")
    assert again.json()["state"] == "cancelled"


async def test_the_same_post_twice_is_one_request(fleet: Site, http: httpx2.AsyncClient) -> None:
    body = {"prompt": "once", "max_tokens": 25}

    async def post(url: str, key: str, **more: Any) -> httpx2.Response:
        return await http.post(f"{url}/v1/generate", json=body | more, headers={"idempotency-key": key})

    both = await asyncio.gather(post(fleet.gateways[0], "k-1"), post(fleet.gateways[-1], "k-1"))
    assert both[0].json()["request_id"] == both[1].json()["request_id"]
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in both) == ["", "true"]
    later = await post(fleet.gateways[-1], "k-1")
    assert later.json() == both[0].json() | {"timings": later.json()["timings"]}
    other = await post(fleet.gateways[0], "k-1", max_tokens=3)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert other.headers["x-should-retry"] == "false"
    assert (await post(fleet.gateways[0], "a b")).status_code == 400
    fresh = await post(fleet.gateways[0], "k-2")
    assert fresh.json()["request_id"] != later.json()["request_id"]


async def test_a_cancelled_request_does_not_hold_its_key(fleet: Site, http: httpx2.AsyncClient) -> None:
    url = fleet.gateways[0]
    headers = {"idempotency-key": "k-cancelled"}
    body = {"prompt": "cancelled once", "max_tokens": 10, "background": True}
    first = (await http.post(f"{url}/v1/generate", json=body, headers=headers)).json()["request_id"]
    assert (await http.delete(f"{url}/v1/requests/{first}")).json()["state"] == "cancelled"
    second = (await http.post(f"{url}/v1/generate", json=body, headers=headers)).json()["request_id"]
    assert second != first


async def test_unknown_and_malformed_ids(fleet: Site, http: httpx2.AsyncClient) -> None:
    url = fleet.gateways[0]
    for request_id in ("nonsense", "g" * 12 + ".01M83VPADE20A49QZ0BF9JCV43", "*", "{x}"):
        for suffix in ("", "/events"):
            answer = await http.get(f"{url}/v1/requests/{request_id}{suffix}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
    assert (await http.get(f"{url}/v1/requests", params={"limit": 0})).status_code == 400


async def test_only_ones_own_requests_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    _, mine = create_key(path, name="mine")
    _, yours = create_key(path, name="yours")
    _, admin = create_key(path, name="admin", admin=True)
    with site() as fleet:
        fleet.serve("--api-keys-file", str(path))
        url = fleet.gateways[0]
        async with reading.client() as http:

            async def call(method: str, where: str, key: str, **more: Any) -> httpx2.Response:
                return await http.request(method, url + where, headers={"x-api-key": key}, **more)

            body = {"prompt": "private", "max_tokens": 3, "background": True}
            request_id = (await call("POST", "/v1/generate", mine, json=body)).json()["request_id"]
            where = f"/v1/requests/{request_id}"
            assert (await call("GET", where, mine)).status_code == 200
            assert (await call("GET", where, yours)).status_code == 404
            assert (await call("DELETE", where, yours)).status_code == 404
            assert (await call("GET", where + "/events", yours)).status_code == 404
            assert (await call("GET", where, admin)).status_code == 200
            assert (await call("GET", "/v1/requests", yours)).json()["data"] == []
            assert len((await call("GET", "/v1/requests", mine)).json()["data"]) == 1
            for key in (mine, yours):
                again = await http.post(
                    f"{url}/v1/generate", json=body, headers={"x-api-key": key, "idempotency-key": "shared"}
                )
                assert "idempotent-replayed" not in again.headers


async def test_the_position_in_the_queue_is_sent() -> None:
    with site() as fleet:
        fleet.serve("--model", "mock=mock:step_ms=20", "--max-batch-size", "1", "--max-batches", "1")
        url = fleet.gateways[0]
        async with reading.client() as http:
            running = asyncio.create_task(reading.whole(http, url, prompt="first", max_tokens=5000))

            async def is_running() -> bool:
                return reading.metric((await http.get(f"{url}/metrics")).text, "penstock_running") == 1

            await wait_until_async(is_running, "the first one runs")
            others = [
                asyncio.create_task(reading.whole(http, url, prompt=f"second {i}", max_tokens=1)) for i in range(3)
            ]

            async def is_queued() -> bool:
                page = (await http.get(f"{url}/metrics")).text
                return reading.metric(page, "penstock_queue_depth") >= 2

            await wait_until_async(is_queued, "others wait")
            body = {"prompt": "third", "max_tokens": 1, "stream": True}
            names: list[str] = []
            places: list[int] = []
            async with http.stream("POST", f"{url}/v1/generate", json=body | {"queue_events": True}) as response:
                decoder = Decoder()
                async for chunk in response.aiter_bytes():
                    for event in decoder.feed(chunk):
                        names.append(event.event)
                        if event.event == "queued":
                            places.append(json.loads(event.data)["position"])
                            running.cancel()  # its client leaves, and that lets the others run
            assert names[0] == "queued"
            assert names[-2:] == ["token", "done"]
            assert places == sorted(places, reverse=True)
            assert places[0] >= 3
            await asyncio.gather(*others)
            assert running.cancelled()
            quiet = await reading.stream(http, url, prompt="quiet", max_tokens=1, queue_events=False)
            assert quiet.end == "done"


async def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once() -> None:
    with site() as fleet:
        fleet.serve("--model", "mock=mock:step_ms=100", "--max-batch-size", "1", "--max-batches", "1")
        url = fleet.gateways[0]
        async with reading.client() as http:
            crowd = [
                asyncio.create_task(reading.whole(http, url, prompt=f"crowd {i}", max_tokens=3, timeout_s=60))
                for i in range(40)
            ]

            async def is_refused() -> bool:
                answer = await reading.whole(http, url, prompt="in a hurry", max_tokens=1, timeout_s=1)
                if answer.status_code in (200, 504):
                    return False  # no request waited yet, or no rate was known
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "deadline_unreachable")
                assert answer.json()["error"]["param"] == "timeout_s"
                assert int(answer.headers["retry-after"]) >= 1
                return True

            await wait_until_async(is_refused, "the rate is known")
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
