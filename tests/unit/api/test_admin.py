"""The operators' routes over a gateway on the memory transport: what they show, what they do, and for whom."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import pytest
from fastapi import FastAPI
from rich.console import Console
from starlette.requests import Request
from starlette.types import ASGIApp

from penstock.api.admin_answers import DoctorReport, GatewayRow, PoolOverview, WorkerRow
from penstock.api.apis import apis_of
from penstock.api.app import create_app
from penstock.api.callers import identify
from penstock.api.responses.body import request_id_of
from penstock.callers.keys import create_key
from penstock.cli.operators import _follow
from penstock.errors import StoreUnavailable, Unavailable
from penstock.event import Failed
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.gateway import Gateway
from penstock.http.door import Door
from penstock.job import JOB_ID, Job, created_at_of, new_ulid
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports.base import MAX_DEATHS_IN_A_ROW, Finding, JobSummary, worst_first
from penstock.transports.memory import MemoryTransport
from tests.support.memory import changing
from tests.support.waiting import wait_until

SECRET = "the prompt that nobody may read"
KNOWN = "g23456789abc.01M89Q6T1GP5408G6N2J10YFZM"


class Site:
    """A running gateway without a worker, and a client of its routes."""

    def __init__(self, **settings: Any) -> None:
        self.store = MemoryTransport()
        self.gateway = Gateway(Settings(**settings), self.store, Metrics())
        transport = httpx2.ASGITransport(create_app(self.gateway))
        json = {"content-type": "application/json"}
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://gateway/v1/admin", headers=json)

    async def enlist(self, worker_id: str = "w1") -> WorkerInfo:
        info = WorkerInfo(id=worker_id, models={"mock": Capabilities()}, num_slots=8, num_free=8, host="h", pid=7)
        await self.store.enlist(info)
        return info

    async def submit(self, **fields: Any) -> str:
        job = Job(**{"id": f"g1.{new_ulid()}", "model": "mock", "prompt": SECRET, **fields})
        await self.store.submit(job, "g1", 0)
        return job.id

    async def poison(self) -> str:
        """A request that has ended three workers, and one more that finds it poisoned."""
        job_id = await self.submit(caller="ada")
        for number in range(MAX_DEATHS_IN_A_ROW + 1):
            worker_id = f"dying{number}"
            await self.enlist(worker_id)
            await self.store.take(worker_id, 1)
            await self.store.claim(worker_id, [job_id])
            await self.store.leave(worker_id)
            await self.store.reap(worker_id)
        return job_id

    async def get(self, path: str, status: int = 200, **kwargs: Any) -> dict[str, Any]:
        return await self.ask("GET", path, status, **kwargs)

    async def ask(self, method: str, path: str, status: int = 200, **kwargs: Any) -> dict[str, Any]:
        answer = await self.http.request(method, path, **kwargs)
        assert answer.status_code == status, answer.text
        assert SECRET not in answer.text
        assert answer.headers["x-request-id"]
        body: dict[str, Any] = answer.json()
        return body


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    built = Site()
    built.gateway.start()
    await wait_until(lambda: built.store.is_listening, "the gateway listens")
    yield built
    await built.http.aclose()
    await built.gateway.stop()


async def test_the_overview_shows_the_jobs_of_each_worker(site: Site) -> None:
    await site.enlist()
    running, waiting = await site.submit(caller="ada"), await site.submit()
    await site.store.take("w1", 1)
    await site.store.claim("w1", [running])
    seen = await site.get("/overview")
    assert (seen["queue_depth"], seen["num_held"], seen["num_dead"], seen["num_taken"]) == (1, 1, 0, 1)
    assert [one["id"] for one in seen["gateways"]] == [site.gateway.id]
    (worker,) = seen["workers"]
    assert (worker["id"], worker["held"], worker["slots"], worker["host"], worker["pid"]) == ("w1", 1, 8, "h", 7)
    assert worker["models"] == ["mock"]
    (shown,) = seen["running"]
    assert shown.pop("age_s") >= 0
    assert shown == {
        "id": running,
        "model": "mock",
        "caller": "ada",
        "state": "running",
        "worker": "w1",
        "attempts": 1,
        "tokens": 0,
    }
    assert seen["oldest_waiting_s"] >= 0, waiting


async def test_the_openapi_document_describes_the_answers_of_the_routes(site: Site) -> None:
    document = (await site.http.get("http://gateway/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path, kind in (("overview", PoolOverview), ("doctor", DoctorReport)):
        answer = document["paths"][f"/v1/admin/{path}"]["get"]["responses"]["200"]
        assert answer["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{kind.__name__}"}
        assert set(schemas[kind.__name__]["properties"]) == set(await site.get(f"/{path}"))
    assert set(schemas["WorkerRow"]["properties"]) == set(WorkerRow.__struct_fields__)


@pytest.mark.parametrize("job_id", ["docs.1", "ng-7.52906a2ceb0d", "G_2.a.b", "p." + "x" * 128])
async def test_ids_that_another_producer_made_are_ids(site: Site, job_id: str) -> None:
    assert JOB_ID.fullmatch(job_id)
    assert created_at_of(job_id) == 0
    await site.submit(id=job_id)
    response = await site.http.get(f"http://gateway/v1/requests/{job_id}")
    assert (response.status_code, response.json()["state"]) == (200, "queued")
    assert request_id_of(f"resp_{job_id}") == job_id
    assert (await site.ask("DELETE", f"/requests/{job_id}"))["outcome"] == "cancelled"


@pytest.mark.parametrize(
    "job_id", ["docs", ".1", "docs.", "a b.1", "a.*", "a.{x}", "a.1|", 'a."', "a.\\", "é.1", "p." + "x" * 129]
)
async def test_an_id_cannot_break_a_key_or_a_pattern(site: Site, job_id: str) -> None:
    assert not JOB_ID.fullmatch(job_id)
    response = await site.http.get(f"http://gateway/v1/requests/{quote(job_id)}")
    assert response.status_code == 404


async def test_no_list_reads_a_whole_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.enlist()
    job_id = await site.submit(caller="ada")
    await site.store.take("w1", 1)
    await site.submit()
    read = site.store.read

    async def read_summary(job_ids: Sequence[str]) -> list[JobSummary | None]:
        records = [await read(job_id) for job_id in job_ids]
        return [None if record is None else JobSummary.of(record) for record in records]

    async def no_read(*_: object, **__: object) -> None:
        raise AssertionError("a whole request was read")

    monkeypatch.setattr(site.store, "read_summary", read_summary)
    monkeypatch.setattr(site.store, "read", no_read)
    assert [one["id"] for one in (await site.get("/overview"))["running"]] == [job_id]
    assert len((await site.get("http://gateway/v1/requests"))["data"]) == 1
    await site.get("/doctor")
    await site.ask("DELETE", "/callers/ada/requests")


async def test_the_overview_is_bounded(site: Site) -> None:
    await site.enlist()
    for _ in range(250):
        await site.submit()
    await site.store.take("w1", 250)
    seen = await site.get("/overview")
    assert (seen["num_held"], len(seen["running"])) == (250, 200)


async def test_a_doctor_lists_errors_first(site: Site) -> None:
    report = await site.get("/doctor")
    assert report["level"] == "error"
    assert (report["findings"][0]["name"], report["findings"][0]["level"]) == ("this gateway", "error")
    assert "no worker is alive" in report["findings"][0]["value"]
    await site.enlist()
    await site.submit()
    await wait_until(lambda: not site.gateway.why_not_ready(), "the gateway has seen the worker")
    report = await site.get("/doctor")
    found = {one["name"]: one for one in report["findings"]}
    assert report["level"] == "ok"
    assert found["workers"]["value"] == "1 alive, serving mock"
    assert found["oldest waiting"]["value"].endswith(" s")


def test_findings_come_worst_first_and_else_as_they_were() -> None:
    levels = ("ok", "warning", "error", "ok", "error")
    findings = [Finding(name=str(i), level=level, value="") for i, level in enumerate(levels)]  # type: ignore[arg-type]
    assert [one.name for one in worst_first(findings)] == ["2", "4", "1", "0", "3"]


async def test_the_dead_are_listed_and_shown_without_their_prompt(site: Site) -> None:
    assert await site.get("/dead") == {"data": []}
    job_id = await site.poison()
    (listed,) = (await site.get("/dead"))["data"]
    assert listed == {"id": job_id, "model": "mock", "deaths": 3, "error": "request_poisoned", "reason": ""}
    shown = await site.get(f"/dead/{job_id}")
    assert {name: shown[name] for name in listed} == listed
    assert (shown["attempts"], shown["can_redrive"]) == (3, True)
    assert (await site.get("/dead/g1.X", 404))["error"]["code"] == "request_not_found"


async def test_a_dead_request_is_run_once_more_under_a_new_id(site: Site) -> None:
    job_id = await site.poison()
    said = await site.ask("POST", f"/dead/{job_id}/redrive")
    assert said["redriven"] == job_id
    assert said["request_id"].startswith(f"{site.gateway.id}.")
    record = await site.store.read(said["request_id"])
    assert record is not None
    assert (record.state, record.job.prompt, record.job.caller) == ("queued", SECRET, "ada")
    assert record.job.on_disconnect == "continue"
    assert await site.get("/dead") == {"data": []}
    await site.ask("POST", f"/dead/{job_id}/redrive", 404)
    assert len(await site.store.waiting()) == 1


async def test_a_dead_request_that_cannot_run_again_stays_on_the_list(site: Site) -> None:
    job_id = await site.poison()
    site.gateway.admission.is_draining = True
    assert (await site.ask("POST", f"/dead/{job_id}/redrive", 503))["error"]["code"] == "draining"
    site.gateway.admission.is_draining = False
    with changing(site.store) as state:
        del state.jobs[job_id]
    refused = await site.ask("POST", f"/dead/{job_id}/redrive", 404)
    assert "no longer has" in refused["error"]["message"]
    assert (await site.get(f"/dead/{job_id}"))["can_redrive"] is False
    await site.ask("DELETE", f"/dead/{job_id}")
    await site.ask("DELETE", f"/dead/{job_id}", 404)
    assert await site.get("/dead") == {"data": []}


async def test_anybodys_request_can_be_cancelled(site: Site) -> None:
    await site.enlist()
    running = await site.submit(caller="ada")
    await site.store.take("w1", 1)
    await site.store.claim("w1", [running])
    waiting = await site.submit(caller="bob")
    assert (await site.ask("DELETE", f"/requests/{running}"))["outcome"] == "being cancelled"
    assert (await site.ask("DELETE", f"/requests/{waiting}"))["outcome"] == "cancelled"
    assert (await site.ask("DELETE", f"/requests/{waiting}"))["outcome"] == "it had ended already"
    for unknown in (f"g1.{new_ulid()}", "g1.{x}", "*"):
        refused = await site.ask("DELETE", f"/requests/{unknown}", 404)
        assert refused["error"]["code"] == "request_not_found"


async def test_everything_of_one_caller_is_cancelled_and_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.api.cancelling.LOOK_AT_ONCE", 2)
    monkeypatch.setattr("penstock.api.cancelling.CANCEL_AT_ONCE", 2)
    await site.enlist()
    running = [await site.submit(caller=caller) for caller in ("ada", "bob", "ada")]
    assert await site.store.take("w1", 3) == running
    await site.store.claim("w1", running)
    waiting = [await site.submit(caller=caller) for caller in ("ada", "bob", "", "ada", "ada")]
    monkeypatch.setattr("penstock.api.cancelling.MAX_LISTED", 1)  # its own list does not have them all
    said = await site.ask("DELETE", "/callers/ada/requests")
    assert said == {"caller": "ada", "cancelled": 3, "being_cancelled": 2, "is_live": False}
    assert await site.store.waiting() == waiting[1:3]
    again = await site.ask("DELETE", "/callers/ada/requests")
    assert (again["cancelled"], again["being_cancelled"]) == (0, 2)  # until their worker has ended them
    assert (await site.ask("DELETE", "/callers/nobody/requests"))["cancelled"] == 0
    await site.ask("DELETE", f"/callers/{'a' * 65}/requests", 400)


async def test_a_store_that_is_away_is_503(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> Any:
        raise StoreUnavailable("Redis is away.")

    monkeypatch.setattr(site.store, "overview", away)
    monkeypatch.setattr(site.store, "dead", away)
    for path in ("/overview", "/dead", "/dead/x"):
        assert (await site.get(path, 503))["error"]["code"] == "store_unavailable"


async def test_with_keys_on_only_administrators_get_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    _, plain = create_key(path, name="plain")
    _, admin = create_key(path, name="admin", admin=True)
    site = Site(api_keys_file=path)
    routes = [
        *(("GET", "/overview"), ("GET", "/doctor"), ("GET", "/dead"), ("GET", "/dead/x"), ("DELETE", "/dead/x")),
        *(("POST", "/dead/x/redrive"), ("DELETE", "/requests/x"), ("DELETE", "/callers/x/requests")),
    ]
    try:
        for method, route in routes:
            nobody = await site.ask(method, route, 401)
            assert nobody["error"]["code"] == "invalid_api_key"
            refused = await site.ask(method, route, 403, headers={"x-api-key": plain})
            assert refused["error"]["code"] == "forbidden"
            assert "administrator" in refused["error"]["message"]
            answer = await site.http.request(method, route, headers={"authorization": f"Bearer {admin}"})
            assert answer.status_code in (200, 404)
    finally:
        await site.http.aclose()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_a_simple_request_of_a_web_page_changes_nothing(site: Site, kind: str | None) -> None:
    """Across sites a page can send POSTs of these content types, or of none, and nothing else that changes anything."""
    app = FastAPI()
    for router in apis_of(site.gateway).routers:
        app.include_router(router)
    routes = [(path, method) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert {method for _, method in routes} <= {"get", "post", "delete"}
    posts = [re.sub(r"{\w+}", KNOWN, path) for path, method in routes if method == "post"]
    assert len(posts) >= 8
    headers = {"host": "gateway"} if kind is None else {"host": "gateway", "content-type": kind}
    for path in posts:
        answer = await site.http.send(httpx2.Request("POST", f"http://gateway{path}", headers=headers, content=b"{}"))
        error = answer.json()["error"]
        code = "unsupported_media_type" if path.startswith("/api/") else error["code"]  # Ollama's errors have no code
        assert (path, answer.status_code, code) == (path, 415, "unsupported_media_type")


async def test_a_file_of_keys_that_cannot_be_read_again_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.gateway.gateway.CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr("penstock.callers.keys.ring.CHECK_INTERVAL_S", 0.01)
    path = tmp_path / "keys.toml"
    _, admin = create_key(path, name="admin", admin=True)
    site = Site(api_keys_file=path)
    site.http.headers["x-api-key"] = admin

    async def finding() -> tuple[str, str]:
        found = {one["name"]: one for one in (await site.get("/doctor"))["findings"]}["API keys"]
        return found["level"], found["value"]

    def stale_s() -> float:
        shown = site.gateway.metrics.expose()[0].decode()
        return float(shown.partition("\npenstock_keys_stale_seconds ")[2].partition("\n")[0] or "nan")

    site.gateway.start()
    try:
        await wait_until(lambda: stale_s() == 0, "the gauge is there")
        assert await finding() == ("ok", "1 in force")
        path.rename(tmp_path / "elsewhere.toml")
        await wait_until(lambda: stale_s() > 0, "the metric says so, without a request")
        level, value = await finding()
        assert level == "error"
        assert "No such file" in value
        (tmp_path / "elsewhere.toml").rename(path)
        path.chmod(0o666)
        await wait_until(lambda: stale_s() == 0, "the metric says that it is over")
        level, value = await finding()
        assert level == "warning"
        assert "others than its owner may write" in value
    finally:
        await site.http.aclose()
        await site.gateway.stop()


def test_ps_waits_for_a_gateway_that_is_started_again() -> None:
    seen = PoolOverview(
        queue_depth=3,
        drain_rate_per_s=1.5,
        num_taken=9,
        num_held=5,
        num_dead=0,
        oldest_waiting_s=2.5,
        gateways=[GatewayRow(id="g1", lease_s=2.0)],
        workers=[WorkerRow(id="w1", lease_s=-1.0, held=5)],
        running=[],
    )
    fuller = msgspec.structs.replace(seen, queue_depth=4)
    answers: list[PoolOverview | BaseException] = [Unavailable("no answer from there"), fuller, KeyboardInterrupt()]

    def look() -> PoolOverview:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    _follow(console, seen, look, 0.0)
    screen = console.file.getvalue()  # type: ignore[attr-defined]
    assert answers == []
    for words in ("waiting 3", "(the next one for 2.5 s)", "no answer from there", "waiting 4", "and 5 more", "?"):
        assert words in screen


async def test_a_gateway_whose_ticker_dies_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up but without answers is the worst case: readiness fails, and open requests end in an error."""
    site = Site()

    async def bug(gateway_id: str) -> Pool:
        raise RuntimeError("a bug")

    await site.enlist()
    site.gateway.start()
    await wait_until(lambda: not site.gateway.why_not_ready(), "the gateway is ready")
    job = Job(id=site.gateway.new_request_id(), model="mock", prompt=SECRET)
    reader = await site.gateway.submit(job, "generate")
    monkeypatch.setattr(site.store, "tick", bug)
    await wait_until(lambda: reader.stream.end is not None, "the stream ends")
    assert isinstance(reader.stream.end, Failed)
    assert reader.stream.end.code == "store_unavailable"
    assert "the store cannot be reached" in site.gateway.why_not_ready()
    await site.http.aclose()
    await site.gateway.stop()


@pytest.mark.parametrize(
    "path", ["/v1/requests", f"/v1/requests/{KNOWN}", f"/v1/requests/{KNOWN}/events", "/v1/admin/overview"]
)
async def test_a_bug_is_answered_in_the_one_envelope(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async def bug(*args: Any) -> None:
        raise ValueError(SECRET)

    for verb in ("read", "requests_of", "overview"):
        monkeypatch.setattr(site.store, verb, bug)
    answer = await site.http.get(f"http://gateway{path}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (500, "internal_error", "server_error")
    assert answer.headers["x-request-id"]
    assert SECRET not in answer.text
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["a bug in a route"]


def _listening(address: str, **settings: Any) -> ASGIApp:
    """The app of a gateway that listens on `address`."""
    made = Settings(**settings)
    return create_app(Gateway(made, MemoryTransport(), Metrics(), Door(made, address)))


async def _ask(app: ASGIApp, path: str, method: str = "GET", **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app)
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.request(method, path, headers=sent)


async def test_a_request_for_another_host_or_of_a_foreign_page_is_answered_by_no_route() -> None:
    app = _listening("127.0.0.1")
    for method, path in (
        *(("GET", "/v1/requests"), ("GET", "/v1/admin/overview"), ("GET", "/metrics"), ("GET", "/livez")),
        *(("POST", "/v1/generate"), ("POST", "/v1/responses/x/cancel"), ("DELETE", "/v1/requests/x"), ("GET", "/x")),
    ):
        for headers, status, code in (
            ({"host": "evil.example"}, 421, "misdirected_request"),
            ({"origin": "http://evil.example"}, 403, "origin_not_allowed"),
            ({"origin": "null"}, 403, "origin_not_allowed"),
        ):
            answer = await _ask(app, path, method, **headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert answer.headers["x-request-id"]
    assert (await _ask(app, "/livez", origin="http://localhost")).status_code == 200


async def test_operators_routes_without_keys_are_for_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    _, admin = create_key(path, name="admin", admin=True)
    local, public = _listening("127.0.0.1"), _listening("192.0.2.1", insecure=True)
    with_keys = _listening("192.0.2.1", api_keys_file=path)
    assert (await _ask(local, "/v1/admin/overview")).status_code == 200
    refused = await _ask(public, "/v1/admin/overview")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert "PENSTOCK_API_KEYS_FILE" in refused.text
    assert (await _ask(with_keys, "/v1/admin/overview", x_api_key=admin)).status_code == 200


async def test_metrics_need_a_key_where_there_are_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    _, plain = create_key(path, name="plain")
    _, admin = create_key(path, name="admin", admin=True)
    _, metrics = create_key(path, name="prometheus", metrics=True, models=())
    asked = _listening("127.0.0.1", api_keys_file=path)
    nobody = await _ask(asked, "/metrics")
    assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, 'Bearer realm="penstock"')
    refused = await _ask(asked, "/metrics", x_api_key=plain)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    for key in (admin, metrics):
        assert "penstock_build_info" in (await _ask(asked, "/metrics", authorization=f"Bearer {key}")).text
        assert (await _ask(asked, "/metrics", x_api_key=f"{key} \t")).status_code == 200
    for open_to_all in (_listening("127.0.0.1", api_keys_file=path, metrics_public=True), _listening("127.0.0.1")):
        assert (await _ask(open_to_all, "/metrics")).status_code == 200
    assert (await _ask(asked, "/v1/admin/overview", x_api_key=metrics)).status_code == 403


async def test_a_slash_at_the_end_leads_nowhere() -> None:
    app = _listening("127.0.0.1", allowed_hosts="*")
    for method, path in (("GET", "/livez/"), ("GET", "/docs/"), ("POST", "/v1/generate/"), ("GET", "/v1/requests/")):
        answer = await _ask(app, path, method, host="evil.example")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        assert "location" not in answer.headers


async def test_a_client_cannot_write_an_address_into_a_line_of_its_own() -> None:
    """Two lines of X-Forwarded-For are one list: the client's own stands to the left of our proxy's."""
    site = Site(trusted_proxies=("10.0.0.0/8",))
    lines = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"198.51.100.1")]
    scope = {"type": "http", "headers": lines, "client": ("10.0.0.1", 1234)}
    assert identify(site.gateway, Request(scope)).address == "198.51.100.1"
    await site.http.aclose()
