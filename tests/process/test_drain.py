"""SIGTERM loses nothing: workers hand back, gateways finish what is open; and starting in any order."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.support import reading
from tests.support.programs import Program, site
from tests.support.servers import free_port, start_server
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(120)

SLOW = "mock=mock:step_ms=20"


async def test_a_worker_that_stops_hands_back_and_its_clients_see_no_error(redis_url: str) -> None:
    with site(redis_url) as fleet:
        first = fleet.worker("--model", SLOW, "--drain-s", "0.2")
        fleet.gateway()
        async with reading.client() as http:
            expected = await reading.whole(http, fleet.gateways[0], prompt="drain 0", max_tokens=60)
            tasks = [
                asyncio.create_task(reading.stream(http, fleet.gateways[0], prompt=f"drain {i}", max_tokens=60))
                for i in range(40)
            ]
            fleet.worker("--model", SLOW)

            async def is_running() -> bool:
                page = (await http.get(f"{fleet.gateways[0]}/metrics")).text
                return reading.metric(page, "penstock_running") == 40

            await wait_until_async(is_running, "all 40 run")
            first.signal(signal.SIGTERM)
            answers = await asyncio.gather(*tasks)
        assert first.wait() == 0
        assert {(answer.end, len(answer.tokens)) for answer in answers} == {("done", 60)}
        assert answers[0].text == expected.json()["text"]
        assert len({event_id.rpartition("-")[0] for answer in answers for event_id in answer.ids}) > 40, (
            "no request was handed over: the test proves nothing"
        )


async def test_a_gateway_that_stops_finishes_its_streams(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker("--model", SLOW)
        gateway = fleet.gateway()
        async with reading.client() as http:
            tasks = [
                asyncio.create_task(reading.stream(http, fleet.gateways[0], prompt=f"last {i}", max_tokens=50))
                for i in range(20)
            ]

            async def is_running() -> bool:
                page = (await http.get(f"{fleet.gateways[0]}/metrics")).text
                return reading.metric(page, "penstock_running") == 20

            await wait_until_async(is_running, "all 20 run")
            gateway.signal(signal.SIGTERM)
            answers = await asyncio.gather(*tasks)
        assert gateway.wait() == 0
        assert {(answer.end, len(answer.tokens)) for answer in answers} == {("done", 50)}


async def test_a_gateway_out_of_time_ends_its_streams_with_an_error() -> None:
    with site() as fleet:
        program = fleet.serve("--model", SLOW, "--drain-s", "0.3")
        async with reading.client() as http:
            task = asyncio.create_task(reading.stream(http, fleet.gateways[0], prompt="long", max_tokens=5000))

            async def is_running() -> bool:
                page = (await http.get(f"{fleet.gateways[0]}/metrics")).text
                return reading.metric(page, "penstock_running") == 1

            await wait_until_async(is_running, "it runs")
            program.signal(signal.SIGTERM)
            answer = await task
        assert answer.end == "error"
        assert answer.data["error"]["code"] == "draining"
        assert program.wait() == 0


async def test_processes_that_start_before_the_store_wait_for_it() -> None:
    port = free_port()
    with site(f"redis://127.0.0.1:{port}") as fleet:
        gateway = fleet.gateway(is_ready=False)
        worker_port = free_port()
        worker = Program("worker", "--redis-url", fleet.redis_url or "", "--metrics-port", str(worker_port))
        fleet.programs.append(worker)
        worker.wait_for(f"http://127.0.0.1:{worker_port}/livez")
        async with reading.client() as http:
            url = fleet.gateways[0]
            assert (await http.get(f"{url}/readyz")).status_code == 503
            refused = await reading.whole(http, url, prompt="too early", max_tokens=1)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "store_unavailable"
            server = start_server(port=port)
            try:
                gateway.wait_for(f"{url}/readyz")
                answer = await reading.whole(http, url, prompt="now", max_tokens=1)
                assert answer.status_code == 200
            finally:
                fleet.stop()
                server.stop()


async def test_no_worker_is_503_after_the_grace(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.gateway("--no-worker-grace-s", "0.5", is_ready=False)
        async with reading.client() as http:
            for is_stream in (False, True):
                answer = await http.post(
                    f"{fleet.gateways[0]}/v1/generate", json={"prompt": "hello", "stream": is_stream}
                )
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "no_workers"
                assert int(answer.headers["retry-after"]) >= 1


async def test_a_cold_start_is_waited_for(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.gateway(is_ready=False)
        async with reading.client() as http:
            task = asyncio.create_task(reading.whole(http, fleet.gateways[0], prompt="early", max_tokens=3))
            await asyncio.sleep(0)
            fleet.worker()
            assert (await task).status_code == 200


async def test_processes_share_a_port_and_metrics_are_their_sum(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker()
        parent = fleet.gateway("--processes", "3")
        url = fleet.gateways[0]

        async def requests(num: int) -> None:
            for i in range(num):  # a connection each, so that every process gets some
                async with reading.client() as http:
                    assert (await reading.whole(http, url, prompt=f"sum {i}", max_tokens=2)).status_code == 200

        async def counted() -> float:
            async with reading.client() as http:
                page = (await http.get(f"{url}/metrics")).text
            return reading.metric(page, "penstock_requests_total", outcome="ok")

        await requests(30)
        assert await counted() == 30
        children = _children(parent.pid)
        assert len(children) == 3
        import os

        os.kill(children[0], signal.SIGKILL)
        await wait_until(lambda: len(_children(parent.pid)) == 3 and children[0] not in _children(parent.pid), "again")

        async def answers() -> bool:
            return await counted() >= 30

        await wait_until_async(answers, "counters do not go backwards")
        await requests(10)
        assert await counted() == 40
    assert parent.process.returncode == 0
    assert _children(parent.pid) == []


def _children(pid: int) -> list[int]:
    from pathlib import Path

    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
