"""What a doctor says of a store: each judgement by itself."""

from __future__ import annotations

import pytest

from penstock.fleet import Capabilities, WorkerInfo
from penstock.transports.base import Holding, Overview
from penstock.transports.redis import doctor as findings
from penstock.transports.redis.driver.endpoint import parse


@pytest.mark.parametrize(
    ("info", "level", "value"),
    [
        ({"redis_version": "7.0.15"}, "ok", "Redis 7.0.15"),
        ({"redis_version": "8.2.0"}, "ok", "Redis 8.2.0"),
        ({"redis_version": "6.2.14"}, "error", "Redis 6.2.14"),
        ({"redis_version": "255.255.255"}, "ok", "Redis 255.255.255"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, "ok", "Valkey 8.1.0"),
        ({}, "error", "Redis unknown"),
        (None, "warning", "hidden"),
    ],
)
def test_the_version(info: dict[str, str] | None, level: str, value: str) -> None:
    finding = findings.version(info)
    assert (finding.level, finding.value) == (level, value)
    assert bool(finding.advice) == (level != "ok")


@pytest.mark.parametrize(
    ("limit", "policy", "used", "level"),
    [
        (0, "noeviction", 10**9, "ok"),
        (10**9, "noeviction", 10**8, "ok"),
        (10**9, "noeviction", 9 * 10**8, "warning"),
        (0, "allkeys-lru", 0, "warning"),
        (10**9, "allkeys-lru", 0, "error"),
        (10**9, "volatile-lru", 0, "error"),
        (10**9, "volatile-ttl", 0, "error"),
    ],
)
def test_the_memory_policy(limit: int, policy: str, used: int, level: str) -> None:
    info = {"maxmemory": str(limit), "maxmemory_policy": policy, "used_memory": str(used)}
    assert findings.memory_policy(info, None).level == level
    if not used:
        assert findings.memory_policy(None, {"maxmemory": str(limit), "maxmemory-policy": policy}).level == level


@pytest.mark.parametrize(
    ("info", "config", "level", "value"),
    [
        ({"aof_enabled": "1"}, None, "ok", "AOF"),
        ({"aof_enabled": "0"}, {"save": "3600 1", "appendonly": "no"}, "ok", "RDB (3600 1)"),
        ({"aof_enabled": "0"}, {"save": "", "appendonly": "no"}, "warning", "none"),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, None, "error", "the last save failed"),
        ({"rdb_last_bgsave_status": "err"}, {"save": "3600 1"}, "error", "the last save failed"),
        ({"aof_enabled": "0"}, None, "warning", "hidden"),
    ],
)
def test_persistence(info: dict[str, str], config: dict[str, str] | None, level: str, value: str) -> None:
    finding = findings.persistence(info, config)
    assert (finding.level, finding.value) == (level, value)


@pytest.mark.parametrize(
    ("limits", "level"), [("33554432 8388608 60", "ok"), ("0 0 0", "warning"), ("1048576 0 0", "warning")]
)
def test_output_buffers(limits: str, level: str) -> None:
    config = {"client-output-buffer-limit": f"normal 0 0 0 slave 268435456 67108864 60 pubsub {limits}"}
    assert findings.output_buffers(config).level == level


@pytest.mark.parametrize(
    ("url", "lacks"),
    [
        ("redis://localhost", ""),
        ("redis://127.0.0.9:7000/1", ""),
        ("redis://[::1]", ""),
        ("unix:///run/redis.sock", ""),
        ("rediss://:hush@redis.example.org", ""),
        ("redis://redis:6379", "TLS and without a password"),
        ("redis://:hush@10.0.0.1", "TLS"),
        ("rediss://redis.example.org", "a password"),
        ("redis+sentinel://:hush@s1,s2/main", "TLS"),
        ("redis+cluster://n1,n2", "TLS and without a password"),
    ],
)
def test_a_server_in_the_open(url: str, lacks: str) -> None:
    finding = findings.network(parse(url))
    assert finding.level == ("warning" if lacks else "ok")
    assert "hush" not in f"{finding}"
    if lacks:
        assert finding.value.endswith(f"is reached without {lacks}")


def _worker(name: str, lease_s: float, *models: str, held: tuple[str, ...] = ()) -> Holding:
    info = WorkerInfo(id=name, models={model: Capabilities() for model in models}, num_slots=1, num_free=1)
    return Holding(worker=name, lease_s=lease_s, held=held, info=info)


@pytest.mark.parametrize(
    ("workers", "level", "value"),
    [
        ((), "warning", "none alive"),
        ((_worker("w1", -1.0, "m"),), "warning", "none alive"),
        ((_worker("w1", 1.0, "m", "n"), _worker("w2", 1.0, "n", "m")), "ok", "2 alive, serving m, n"),
        ((_worker("w1", 1.0, "m"), _worker("w2", -1.0, "m", held=("x",))), "warning", "1 alive, serving m; 1 dead"),
        ((_worker("w1", 1.0, "m"), _worker("w2", 1.0, "n")), "error", "2 alive, which disagree: m and n"),
    ],
)
def test_workers(workers: tuple[Holding, ...], level: str, value: str) -> None:
    finding = findings.workers(Overview(depth=0, num_taken=0, workers=workers))
    assert (finding.level, finding.value) == (level, value)


def test_the_rest() -> None:
    assert findings.role({"role": "slave"}).level == "error"
    assert findings.role({"role": "master", "connected_slaves": "2"}).value == "master, 2 replicas"
    assert findings.round_trip(0.2, 20).level == "ok"
    assert findings.round_trip(9.0, 20).level == "warning"
    assert findings.clock(-0.4).level == "ok"
    assert findings.clock(-4.0).level == "warning"
    assert findings.rights("app", ()).level == "ok"
    assert findings.rights("app", None).level == "warning"
    assert findings.rights("app", ["XADD", "XADD"]).value == "app may not XADD"
    assert findings.oldest_waiting(0, None).level == "ok"
    assert findings.oldest_waiting(9, 3.0).value == "3.0 s, 9 in the queue"
    assert findings.oldest_waiting(9, 61.0).level == "warning"
    assert findings.dead_requests(0, []).level == "ok"
    both = findings.worst([findings.role({}), findings.role({"role": "slave"})])
    assert (both.level, both.value) == ("error", "slave (of 2 servers, the worst)")


@pytest.mark.parametrize(
    ("errors", "value", "says", "omits"),
    [
        (["request_poisoned"] * 2, "2", ["took several workers down", "redrive"], "cannot be read"),
        (["unreadable"] * 2, "2, of which 2 cannot be read", ["was never run", "dead drop"], "took several"),
        (["unreadable", "request_poisoned"], "2, of which 1 cannot be read", ["never run", "took several"], "Each of"),
        ([], "2", ["took several workers down"], "cannot be read"),
    ],
)
def test_advice_for_dead_requests_is_about_what_they_are(
    errors: list[str], value: str, says: list[str], omits: str
) -> None:
    finding = findings.dead_requests(2, errors)
    assert (finding.level, finding.value) == ("warning", value)
    assert all(one in finding.advice for one in says)
    assert omits not in finding.advice
