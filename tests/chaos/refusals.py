"""Redis refuses: rights that are taken away and given back, keys of the wrong type, ids and fields that are garbage."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from tests.chaos.http import Cut, get
from tests.chaos.load import Habits
from tests.chaos.plant import QUEUE
from tests.chaos.registry import scenario
from tests.chaos.run import Run, Target

AWAY_S = 3.0
RIGHTS = (
    *("publish", "hset", "zadd", "xadd", "evalsha", "lrem", "pexpire", "hmget", "xrevrange", "lmove", "blmove"),
    *("hget", "zrangebyscore", "rpush", "hincrby", "lrange", "time", "xrange", "psubscribe", "unlink", "zscore"),
)
HABITS = Habits(min_tokens=30, max_tokens=60)
KINDS: dict[str, tuple[str, ...]] = {
    "string": ("SET", "KEY", "garbage"),
    "list": ("RPUSH", "KEY", "garbage"),
    "set": ("SADD", "KEY", "garbage"),
    "zset": ("ZADD", "KEY", "1", "garbage"),
    "hash": ("HSET", "KEY", "garbage", "garbage"),
    "stream": ("XADD", "KEY", "1-1", "garbage", "garbage"),
}
POOL_KEYS = (QUEUE, *(f"{{{QUEUE}}}:{name}" for name in ("workers", "gateways", "about", "clock", "dead")))


async def _all_serve(run: Run, after: str) -> None:
    """Every process is the one that was started, and every gateway takes work."""
    for member in run.plant.members:
        run.check(member.is_alive, f"{member.name} ended with {member.process.poll()} {after}")

    async def is_so() -> bool:
        try:
            answers = [await get(gateway.url, "/readyz") for gateway in run.plant.gateways]
        except Cut:
            return False
        return all(status == 200 for status, _ in answers)

    try:
        await run.until(is_so, f"every gateway is ready {after}", timeout_s=15.0)
    except AssertionError as error:
        run.problems.append(str(error))


@scenario(Target(says="0 errors for admitted; ≤ absence + 3 s", max_ms=6000), seconds=45)
async def rights(run: Run) -> None:
    """One right after the other is taken from the Redis user for 3 s, and given back: no process is touched."""
    await run.build(workers=2, gateways=2, habits=HABITS)
    run.load.start(24)
    names = list(RIGHTS)
    run.rng.shuffle(names)
    until = time.monotonic() + run.seconds
    while names and time.monotonic() < until:
        name = names.pop()
        await run.until_streaming(8)
        run.inject(f"-{name} {AWAY_S:g} s")
        try:
            await run.plant.ask("ACL", "SETUSER", "default", f"-{name}")
            await asyncio.sleep(AWAY_S)
        finally:
            await run.plant.ask("ACL", "SETUSER", "default", f"+{name}")
        await _all_serve(run, f"after -{name}")
        await asyncio.sleep(1.0)
        if not names and run.is_long:
            names = list(RIGHTS)


@scenario(Target(says="no other request fails; ≤ 6 s", max_ms=6000), seconds=45)
async def planted(run: Run) -> None:
    """Keys of every wrong type in place of the pool's own, ids that are no ids, and requests that cannot be read."""
    await run.build(workers=2, gateways=2, habits=HABITS)
    run.load.start(24)
    places = [(key, kind) for key in POOL_KEYS for kind in KINDS if kind != _type_of(key)]
    run.rng.shuffle(places)
    until = time.monotonic() + run.seconds
    for key, kind in places:
        if time.monotonic() > until:
            break
        await run.until_streaming(8)
        run.inject(f"{key.rpartition(':')[2]} is a {kind}")
        await _swap(run, key, kind)
        await asyncio.sleep(0.7)
        await _all_serve(run, f"after {key} was a {kind}")
    await _break_running(run)
    await _plant_ids(run)
    await _all_serve(run, "after bad ids")


def _type_of(key: str) -> str:
    return {"workers": "zset", "gateways": "zset", "about": "hash", "clock": "hash"}.get(key.rpartition(":")[2], "list")


async def _swap(run: Run, key: str, kind: str) -> None:
    """In one step, so that nothing of Penstock's comes between."""
    words = [word if word != "KEY" else key for word in KINDS[kind]]
    script = "redis.call('DEL', KEYS[1]) return redis.call(unpack(ARGV))"
    await run.plant.ask("EVAL", script, 1, key, *words)


def _name(request_id: str, part: str) -> str:
    return f"{{inference:response:{request_id}}}:{part}"


async def _break_running(run: Run) -> None:
    """The hash or the log of requests that run is replaced: each has an end soon, not at its deadline."""
    hit = {}
    for part, own in (("job", "hash"), ("log", "stream")):
        for kind in KINDS:
            if kind != own:
                entry = run.load.send(max_tokens=1500, may_fail=True)
                hit[part, kind] = entry

    async def have_begun() -> bool:
        return all(entry.request_id and entry.tokens for entry in hit.values())

    await run.until(have_begun, "the requests to be broken have begun")
    for (part, kind), entry in hit.items():
        run.inject(f"the {part} of a running request is a {kind}")
        await _swap(run, _name(entry.request_id, part), kind)
        await run.plant.ask("PEXPIRE", _name(entry.request_id, part), 600_000)

    async def have_ended() -> bool:
        return all(entry.outcome != "open" for entry in hit.values())

    try:
        took_s = await run.until(have_ended, "the broken requests have ended")
        run.notes["broken requests ended within"] = f"{took_s:.1f} s"
    except AssertionError as error:
        left = [f"{part} as {kind}" for (part, kind), entry in hit.items() if entry.outcome == "open"]
        run.problems.append(f"{error}: not {left}")
    run.notes["how they ended"] = ", ".join(sorted({f"{entry.outcome} {entry.code}" for entry in hit.values()}))
    for entry in hit.values():
        entry.faults.clear()
        await run.plant.ask("UNLINK", _name(entry.request_id, "job"), _name(entry.request_id, "log"))


async def _plant_ids(run: Run) -> None:
    """Each goes to the dead-letter list alone, and is reported."""
    job = json.dumps({"v": 1, "job": {"id": "evil.0", "model": "mock", "prompt": "x"}})
    fields = {"job": job, "model": "mock", "state": "queued", "attempt": "0", "created": "1", "deadline": "9" * 13}
    spoilt: dict[str, dict[str, Any]] = {
        "evil.nan": {"attempt": "nan"},
        "evil.text": {"attempt": "many"},
        "evil.long": {"attempt": "9" * 40},
        "evil.deadline": {"deadline": "soon"},
        "evil.created": {"created": "never"},
        "evil.state": {"state": "asleep"},
        "evil.json": {"job": '{"v":1,"job":'},
        "evil.retention": {"retention": "abc", "job": "[]"},
    }
    expected = set(spoilt) | {"evil.string", "evil.bare", "evil.log", "\\xff\\xfe"}
    for request_id, wrong in spoilt.items():
        run.inject(f"{request_id} is queued")
        mixed = {**fields, "job": job.replace("evil.0", request_id), **wrong}
        await run.plant.ask("HSET", _name(request_id, "job"), *(word for pair in mixed.items() for word in pair))
        await run.plant.ask("PEXPIRE", _name(request_id, "job"), 600_000)
        await run.plant.ask("RPUSH", QUEUE, request_id)
    await run.plant.ask("SET", _name("evil.string", "job"), "x", "PX", 600_000)
    await run.plant.ask("HSET", _name("evil.bare", "job"), "model", "mock")
    await run.plant.ask("PEXPIRE", _name("evil.bare", "job"), 600_000)
    log = {**fields, "job": job.replace("evil.0", "evil.log"), "attempt": "5"}
    await run.plant.ask("HSET", _name("evil.log", "job"), *(word for pair in log.items() for word in pair))
    await run.plant.ask("PEXPIRE", _name("evil.log", "job"), 600_000)
    await run.plant.ask("SET", _name("evil.log", "log"), "x", "PX", 600_000)
    await run.plant.ask("RPUSH", QUEUE, "evil.string", "evil.bare", "evil.log", b"\xff\xfe")

    async def are_told_of() -> bool:
        _, body = await get(run.plant.gateways[0].url, "/v1/admin/dead")
        return expected <= {entry["id"] for entry in json.loads(body)["data"]}

    try:
        took_s = await run.until(are_told_of, "all bad ids are on the dead-letter list")
        run.notes["bad ids on the dead-letter list within"] = f"{took_s:.1f} s"
    except AssertionError as error:
        _, body = await get(run.plant.gateways[0].url, "/v1/admin/dead")
        run.problems.append(
            f"{error}: {sorted(expected - {entry['id'] for entry in json.loads(body)['data']})} are not"
        )
    for request_id in [*spoilt, "evil.string", "evil.bare", "evil.log"]:  # not in the books
        await run.plant.ask("UNLINK", _name(request_id, "job"), _name(request_id, "log"))
