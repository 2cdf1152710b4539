"""Operators' commands against real processes: doctor, ps, dead, cancel; and who may use them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import httpx2
import pytest

from penstock.callers.keys import create_key, revoke_key
from tests.support import reading
from tests.support.programs import Command, site
from tests.support.servers import free_port
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(60)


def _command(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return Command(*args, env={"COLUMNS": "200", **env}).done()


def test_a_doctor_finds_a_healthy_site(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker()
        fleet.gateway()
        done = _command("doctor", "--url", fleet.gateways[0], "--json")
        assert done.returncode == 0, done.stderr
        found = {one["name"]: one["level"] for one in json.loads(done.stdout)["findings"]}
        assert found["this gateway"] == found["workers"] == found["version"] == "ok"
        gateways = f"http://127.0.0.1:{free_port()},{fleet.gateways[0]}"  # the first is not there
        table = _command("doctor", PENSTOCK_URL=gateways)
        assert "round trip" in table.stdout


def test_a_doctor_needs_no_gateway_to_look_at_a_server(redis_url: str) -> None:
    done = _command("doctor", "--redis-url", redis_url, "--json")
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert (found["workers"]["level"], found["workers"]["value"]) == ("warning", "none alive")
    other = _command("doctor", "--redis-url", redis_url, "--pool", "NO")
    assert other.returncode == 2
    assert "PENSTOCK_POOL" in other.stderr
    away = _command("doctor", "--redis-url", f"redis://127.0.0.1:{free_port()}")
    assert away.returncode == 1
    assert "no answer" in away.stdout


def test_a_doctor_ends_with_0_at_a_healthy_site_and_2_without_a_gateway() -> None:
    with site() as fleet:
        fleet.serve()
        assert _command("doctor", "--url", fleet.gateways[0]).returncode == 0
    gone = _command("doctor", "--url", "http://127.0.0.1:9")
    assert gone.returncode == 1
    assert gone.stderr.startswith("penstock: Cannot connect to http://127.0.0.1:9: ")
    assert "penstock serve" in gone.stderr


def test_a_doctor_reports_that_there_is_no_worker(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.gateway(is_ready=False)
        done = _command("doctor", "--url", fleet.gateways[0])
        assert done.returncode == 1
        assert "no worker is alive" in done.stdout


@pytest.mark.parametrize("store", ["redis", "memory"])
async def test_ps_and_cancel(request: pytest.FixtureRequest, store: str) -> None:
    url = request.getfixturevalue("redis_url") if store == "redis" else None
    model = ("--model", "mock=mock:step_ms=20")
    with site(url) as fleet:
        if url:
            fleet.worker(*model)
            fleet.gateway()
        else:
            fleet.serve(*model)
        async with reading.client() as http:
            task = asyncio.create_task(reading.stream(http, fleet.gateways[0], prompt="long", max_tokens=5000))

            async def is_seen() -> bool:
                seen = (await http.get(f"{fleet.gateways[0]}/v1/admin/overview")).json()
                return bool(seen["running"]) and seen["running"][0]["tokens"] > 0

            await wait_until_async(is_seen, "it is running")
            seen = json.loads((await asyncio.to_thread(_command, "ps", "--json", "--url", fleet.gateways[0])).stdout)
            (running,) = seen["running"]
            assert (running["state"], running["model"], running["attempts"]) == ("running", "mock", 1)
            assert len(seen["workers"]) == len(seen["gateways"]) == 1
            assert seen["workers"][0]["held"] == 1
            table = await asyncio.to_thread(_command, "ps", "--once", "--url", fleet.gateways[0])
            assert running["id"] in table.stdout
            said = await asyncio.to_thread(_command, "cancel", running["id"], "--url", fleet.gateways[0])
            assert said.returncode == 0
            answer = await task
            assert (answer.end, answer.data["finish_reason"]) == ("done", "cancelled")
            unknown = await asyncio.to_thread(_command, "cancel", "g1.X?#", "--url", fleet.gateways[0])
            assert unknown.returncode == 1
            assert "Request not found" in unknown.stderr


def test_a_server_that_is_not_a_gateway_is_reported_in_one_sentence(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker()
        other = _command("ps", "--url", fleet.workers[0])  # its small server knows other routes
        assert (other.returncode, other.stderr.count("\n")) == (1, 1)
        for url in ("nonsense", "ftp://127.0.0.1"):
            wrong = _command("dead", "list", "--url", url)
            assert wrong.returncode == 2
            assert "URL" in wrong.stderr
        key = _command("ps", "--url", fleet.workers[0], "--api-key", "schlüssel")
        assert (key.returncode, "no key has" in key.stderr) == (2, True)


async def test_the_dead_are_listed_shown_run_again_and_dropped(redis_url: str) -> None:
    scripted = ("--model", "mock=mock:step_ms=1,scripted=true")
    with site(redis_url) as fleet:
        for _ in range(4):
            fleet.worker(*scripted)
        fleet.gateway()
        url = fleet.gateways[0]
        async with reading.client() as http:
            answer = await reading.whole(http, url, prompt="[[crash]]", max_tokens=5)
            assert answer.json()["error"]["code"] == "request_poisoned"
            request_id = answer.headers["x-request-id"]
        listed = json.loads(_command("dead", "list", "--json", "--url", url).stdout)
        assert [one["id"] for one in listed] == [request_id]
        shown = _command("dead", "show", request_id, "--url", url).stdout
        assert json.loads(shown)["can_redrive"] is True
        assert "[[crash]]" not in shown
        again = _command("dead", "redrive", request_id, "--url", url)
        assert again.returncode == 0, again.stderr
        assert again.stdout.strip() != request_id
        assert _command("dead", "drop", request_id, "--url", url).returncode == 1
        assert "none" in _command("dead", "list", "--url", url).stdout


def test_only_administrators_keys_get_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    _, plain = create_key(path, name="plain")
    _, admin = create_key(path, name="admin", admin=True)
    with site() as fleet:
        fleet.serve("--api-keys-file", str(path))
        url = fleet.gateways[0]
        without_key = _command("ps", "--once", "--url", url)
        assert without_key.returncode == 1
        assert "PENSTOCK_API_KEY" in without_key.stderr
        refused = _command("ps", "--once", "--url", url, PENSTOCK_API_KEY=plain)
        assert refused.returncode == 1
        assert "administrator" in refused.stderr
        assert _command("ps", "--once", "--url", url, PENSTOCK_API_KEY=admin).returncode == 0


@pytest.mark.timeout(180)
async def test_a_revoked_keys_requests_end_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    ada, adas = create_key(path, name="ada")
    _, bobs = create_key(path, name="bob")
    _, admin = create_key(path, name="admin", admin=True)
    body = {"prompt": "a long one", "max_tokens": 8000, "background": True, "timeout_s": 600}
    with site() as fleet:
        fleet.serve("--api-keys-file", str(path), "--model", "mock=mock:step_ms=200", "--max-batch-size", "2")
        url = fleet.gateways[0]

        def states() -> list[str]:
            asked = [httpx2.get(f"{url}/v1/requests/{one}", headers={"x-api-key": admin}) for one in ids]
            return [answer.json()["state"] for answer in asked]

        ids = [
            httpx2.post(f"{url}/v1/generate", json=body, headers={"x-api-key": key}).json()["request_id"]
            for key in (adas, bobs, *(adas,) * 12)
        ]
        revoke_key(path, ada.id)
        await wait_until(lambda: set(states()) == {"queued", "running"}, "a plain revocation ends no request")
        done = _command("keys", "revoke", ada.id, "--file", str(path), "--cancel", "--url", url, PENSTOCK_API_KEY=admin)
        assert done.returncode == 0, done.stderr
        assert "was revoked before" in done.stderr
        await wait_until(
            lambda: [ids[at] for at, state in enumerate(states()) if state != "cancelled"] == [ids[1]],
            "all of its requests end, and only these",
        )
        elsewhere = tmp_path / "other.toml"
        elsewhere.write_bytes(path.read_bytes().replace(b"revoked = true\n", b""))
        other = _command(
            *("keys", "revoke", bobs.partition(".")[0], "--file", str(elsewhere)),
            *("--cancel", "--url", url),
            PENSTOCK_API_KEY=admin,
        )
        assert other.returncode == 1
        assert "it reads another file" in other.stderr
