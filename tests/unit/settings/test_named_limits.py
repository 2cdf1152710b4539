"""Every setting that refuses a request, or ends one, is named in what its client or its operator reads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from penstock.api.intake import Draft, job_of
from penstock.callers.keys import KeyRing, create_key
from penstock.errors import ConfigError, PenstockError
from penstock.event import Failed, fold
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.admission import Admission, Caller
from penstock.gateway.gateway import Gateway
from penstock.gateway.pool import PoolView
from penstock.http.door import Door, refuse_open
from penstock.job import Sampling
from penstock.metrics import Metrics
from penstock.processes.listen import listen_for_clients, listen_for_operators
from penstock.settings import Settings
from penstock.settings.about import env_name
from penstock.transports.base import EndReason, RateLimit
from penstock.transports.memory import MemoryTransport
from penstock.transports.quota import Share
from tests.support.serving import ask, serving
from tests.support.stores import new_job

Saying = Callable[[Path], Awaitable[str]]

# Numbers that refuse nothing, each with what it does.
SILENT = {
    "processes": "how many there are",
    "batch_window_ms": "a wait",
    "max_batch_size": "more requests wait",
    "max_batches": "more requests wait",
    "default_max_tokens": "`finish_reason` is `length`, as for every limit of tokens",
    "sse_keepalive_s": "a comment",
    "resume_window_s": "the request is cancelled, and its state has that",
    "slow_reader_s": "no client reads it; the log does: tests/unit/api/openai/test_choices.py",
    "engine_stall_s": "no client reads it; the log does: tests/unit/worker/test_worker.py",
}


def _post(body: bytes, path: bytes = b"/v1/generate") -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n" % path
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


async def _refused(doing: Awaitable[Any]) -> str:
    with pytest.raises((PenstockError, ConfigError)) as refused:
        await doing
    return str(refused.value)


def _served(request: bytes, **settings: Any) -> Saying:
    async def answer(path: Path) -> str:
        async with serving(**settings) as port:
            status, body = await ask(port, request)
            assert status >= 400
            return body.decode()

    return answer


def _charged(limit: RateLimit, cost: int, times: int) -> Saying:
    async def charge(path: Path) -> str:
        admission = Admission(MemoryTransport(), PoolView(), rate_limit=limit)
        for _ in range(times - 1):
            await admission.charge(Caller("", "203.0.113.1"), cost)
        return await _refused(admission.charge(Caller("", "203.0.113.1"), cost))

    return charge


def _stored(max_depth: int = 0, max_bytes: int = 0, **share: int) -> Saying:
    async def submit(path: Path) -> str:
        store = MemoryTransport(max_bytes=max_bytes)
        with contextlib.suppress(PenstockError):
            await store.submit(new_job(caller="bob"), "g1", max_depth, share=Share(**share))
        return await _refused(store.submit(new_job(caller="bob"), "g1", max_depth, share=Share(**share)))

    return submit


def _asked(**fields: Any) -> Saying:
    async def ask_for(path: Path) -> str:
        gateway = Gateway(Settings(), MemoryTransport(), Metrics())
        worker = WorkerInfo(id="w", models={"m": Capabilities()}, num_slots=1, num_free=1)
        gateway.pool.look(Pool(depth=0, workers=(worker,)))
        with pytest.raises(PenstockError) as refused:
            job_of(gateway, Caller("", ""), Draft(prompt="x", **fields), "g.1")
        return refused.value.message

    return ask_for


def _ended(reason: EndReason) -> Saying:
    async def end(path: Path) -> str:
        store = MemoryTransport()
        job = new_job(sampling=Sampling(max_tokens=1))
        await store.submit(job, "g1", 0)
        await store.cancel(job.id, reason)
        record = await store.read(job.id)
        assert record is not None
        failed = fold(record.events).end
        assert isinstance(failed, Failed)
        return failed.message

    return end


async def _no_worker(path: Path) -> str:
    pool = PoolView()
    pool.look(Pool(depth=0))
    return await _refused(Admission(MemoryTransport(), pool, no_worker_grace_s=0.01).admit(Caller("", "")))


async def _waiting_for_workers(path: Path) -> str:
    pool = PoolView()
    pool.look(Pool(depth=0))
    return await _refused(Admission(MemoryTransport(), pool, max_waiting=0).admit(Caller("", "")))


async def _slow_head(path: Path) -> str:
    async with serving(header_timeout_s=0.05) as port:
        return (await ask(port, b"POST /v1/generate HTTP/1.1\r\nhost: x\r\n"))[1].decode()


async def _slow_body(path: Path) -> str:
    async with serving(body_timeout_s=0.05) as port:
        return (await ask(port, _post(b"{}").replace(b"length: 2", b"length: 3")))[1].decode()


async def _one_too_many(path: Path) -> str:
    async with serving(max_connections=1, models="mock=mock:step_ms=1000") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post(b'{"prompt":"x","stream":true,"max_tokens":50}'))
        await reader.readuntil(b"event: token")
        said = (await ask(port, _post(b'{"prompt":"x"}')))[1].decode()
        writer.close()
        return said


async def _without_a_key(path: Path) -> str:
    create_key(path, name="one")
    with pytest.raises(PenstockError) as refused:
        Admission(MemoryTransport(), PoolView(), keys=KeyRing(path)).identify(None, "", None)
    return refused.value.message


async def _metrics(path: Path) -> str:
    _, key = create_key(path, name="one")
    line = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: %b\r\n\r\n" % key.encode()
    return await _served(line, api_keys_file=path)(path)


async def _foreign(header: bytes, value: bytes) -> str:
    with pytest.raises(PenstockError) as refused:
        Door(Settings(), "127.0.0.1").judge([(header, value)])
    return refused.value.message


async def _open_door(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        refuse_open(Settings(), "203.0.113.1")
    return refused.value.message


async def _taken(path: Path) -> str:
    with listen_for_clients(Settings(port=0)) as first, pytest.raises(ConfigError) as refused:
        listen_for_clients(Settings(port=first.getsockname()[1]))
    return refused.value.message


async def _metrics_taken(path: Path) -> str:
    with listen_for_operators(Settings(metrics_port=0)) as first, pytest.raises(ConfigError) as refused:
        listen_for_operators(Settings(metrics_port=first.getsockname()[1]))
    return refused.value.message


async def _drained(path: Path) -> str:
    gateway = Gateway(Settings(drain_s=0), MemoryTransport(), Metrics())
    ended: asyncio.Future[PenstockError] = asyncio.get_running_loop().create_future()
    with patch.object(gateway.relay, "fail_all", ended.set_result):
        gateway.begin_drain()
        return (await ended).message


EYES = "m=openai:url=http://127.0.0.1:9,images=data,health=none"
_MISSING = _served(b"GET /v1/requests/g.1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
_LARGE = _post(b'{"prompt":"%b"}' % (b"a" * 2000))

SAYINGS: list[tuple[str, Saying]] = [
    ("port", _taken),
    ("metrics_port", _metrics_taken),
    ("api_keys_file", _without_a_key),
    ("metrics_public", _metrics),
    ("rate_limit_rpm", _charged(RateLimit(1, 1), 1, 2)),
    ("rate_limit_burst", _charged(RateLimit(60, 1), 2, 1)),
    ("insecure", _open_door),
    ("allowed_hosts", lambda path: _foreign(b"host", b"evil.example")),
    ("cors_origins", lambda path: _foreign(b"origin", b"https://evil.example")),
    ("max_queue_depth", _stored(max_depth=1)),
    ("max_queue_depth", _waiting_for_workers),
    ("max_queued_per_caller", _stored(max_queued=1)),
    ("max_stored_per_caller", _stored(max_stored=1)),
    ("max_stored_bytes_per_caller", _stored(max_stored_bytes=1)),
    ("max_memory_bytes", _stored(max_bytes=1)),
    ("max_tokens_limit", _asked(max_tokens=10**7)),
    ("max_timeout_s", _asked(timeout_s=10.0**7)),
    ("default_timeout_s", _ended("deadline")),
    ("no_worker_grace_s", _ended("no_workers")),
    ("no_worker_grace_s", _no_worker),
    ("max_body_bytes", _served(_LARGE, max_body_bytes=1024)),
    ("max_image_body_bytes", _served(_LARGE, max_body_bytes=1024, max_image_body_bytes=1024, models=EYES)),
    ("header_timeout_s", _slow_head),
    ("body_timeout_s", _slow_body),
    ("max_connections", _one_too_many),
    ("background_retention_s", _MISSING),
    ("retention_s", _MISSING),
    ("drain_s", _drained),
]


@pytest.mark.parametrize(("name", "saying"), SAYINGS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SAYINGS)])
async def test_what_a_setting_refuses_names_it(
    name: str, saying: Saying, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    assert env_name(name) in await saying(tmp_path / "keys.toml")


def test_every_number_among_the_settings_is_one_of_these() -> None:
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation in (int, float)}
    assert numbers <= {name for name, _ in SAYINGS} | SILENT.keys()
    assert not SILENT.keys() & {name for name, _ in SAYINGS}
