"""An operator's verbs on Redis: who is there, who is dead, and what a doctor would look at."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from hiredis import ReplyError

from penstock.errors import ConfigError
from penstock.fleet import WorkerInfo
from penstock.transports.base import DeadJob, Finding, Holding, Level, Overview, Transport
from penstock.transports.redis.scripts import Command, command
from penstock.transports.redis.store import Store
from penstock.wire import WireError, decode_json

NUM_PINGS = 20
SLOW_MS = 5.0
MAX_CLOCK_GAP_S = 1.0
OLDEST_REDIS = (7, 0)
_EVICTION = (
    "An evicting policy drops queued requests and their tokens without a word. Set maxmemory-policy noeviction: "
    "then a full server refuses new requests (503), and running ones finish."
)


class OperatorSide(Transport):
    """The verbs of `RedisTransport` for people."""

    _store: Store

    async def overview(self) -> Overview:
        pool, store = self._store.pool, self._store
        depth, taken, gateways, workers, about, oldest, num_dead, now = await store.run(
            "overview",
            pool.queue,
            command("LLEN", pool.queue),
            command("HGET", pool.clock, "taken"),
            command("ZRANGE", pool.gateways, 0, -1, "WITHSCORES"),
            command("ZRANGE", pool.workers, 0, -1, "WITHSCORES"),
            command("HGETALL", pool.about),
            command("LINDEX", pool.queue, 0),
            command("LLEN", pool.dead),
            command("TIME"),
        )
        now_ms = int(now[0]) * 1000 + int(now[1]) / 1000
        leases = {wid: (float(score) - now_ms) / 1000 for wid, score in _pairs(workers)}
        infos = {wid.decode(): _info(says) for wid, says in zip(about[::2], about[1::2], strict=True)}
        lists = [command("LRANGE", pool.worker(wid), 0, -1) for wid in leases]
        held = await store.run("overview", pool.queue, *lists) if lists else []
        return Overview(
            depth=depth,
            num_taken=int(taken or 0),
            gateways={gid: (float(score) - now_ms) / 1000 for gid, score in _pairs(gateways)},
            workers=tuple(
                Holding(worker=wid, lease_s=lease_s, held=tuple(one.decode() for one in ids), info=infos.get(wid))
                for (wid, lease_s), ids in zip(leases.items(), held, strict=True)
            ),
            oldest=oldest.decode() if oldest else "",
            num_dead=num_dead,
        )

    async def dead(self) -> list[DeadJob]:
        dead = self._store.pool.dead
        return [
            decode_json(entry, DeadJob) for entry in await self._store.ask("dead", dead, command("LRANGE", dead, 0, -1))
        ]

    async def bury(self, job_id: str) -> bool:
        dead = self._store.pool.dead
        for entry in await self._store.ask("dead", dead, command("LRANGE", dead, 0, -1)):
            if decode_json(entry, DeadJob).id == job_id:
                return bool(await self._store.ask("bury", dead, command("LREM", dead, 0, entry)))
        return False

    async def check(self) -> None:
        """`ConfigError` for a server that would lose requests quietly, or that is too old for the protocol."""
        for finding in (await self._version(), await self._memory()):
            if finding.level == "error":
                raise ConfigError(f"{finding.name}: {finding.value}. {finding.advice}")

    async def inspect(self) -> list[Finding]:
        findings = [await self._latency(), await self._version(), await self._memory(), await self._persistence()]
        findings += [await self._output_buffers(), await self._clock(), await self._rights()]
        overview = await self.overview()
        is_bad = overview.num_dead > 0
        advice = "Look at them: penstock dead list." if is_bad else ""
        dead = Finding(
            name="dead requests", level="warning" if is_bad else "ok", value=str(overview.num_dead), advice=advice
        )
        return [*findings, dead]

    async def _latency(self) -> Finding:
        times = []
        for _ in range(NUM_PINGS):
            started = time.perf_counter()
            await self._store.ask("ping", self._store.pool.queue, command("PING"))
            times.append((time.perf_counter() - started) * 1000)
        median = statistics.median(times)
        is_slow = median > SLOW_MS
        advice = "Every step of a worker is a round trip: put Redis nearer to workers and gateways." if is_slow else ""
        level: Level = "warning" if is_slow else "ok"
        return Finding(name="round trip", level=level, value=f"{median:.2f} ms (median of {NUM_PINGS})", advice=advice)

    async def _version(self) -> Finding:
        info = await self._info("server")
        if info is None:
            return _hidden("version", "INFO")
        if "valkey_version" in info:
            return Finding(name="version", level="ok", value=f"Valkey {info['valkey_version']}")
        version = info.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
            return Finding(
                name="version", level="error", value=f"Redis {version}", advice="Redis 7.0 or newer is needed."
            )
        return Finding(name="version", level="ok", value=f"Redis {version}")

    async def _memory(self) -> Finding:
        limits = await self._config("maxmemory", "maxmemory-policy")
        if limits is None:
            return _hidden("memory policy", "CONFIG GET")
        limit, policy = int(limits.get("maxmemory", 0)), limits.get("maxmemory-policy", "noeviction")
        value = f"{policy}, maxmemory {limit or 'unlimited'}"
        if policy != "noeviction":
            level: Level = "error" if limit else "warning"
            return Finding(name="memory policy", level=level, value=value, advice=_EVICTION)
        return Finding(name="memory policy", level="ok", value=value)

    async def _persistence(self) -> Finding:
        settings = await self._config("save", "appendonly")
        if settings is None:
            return _hidden("persistence", "CONFIG GET")
        if settings.get("appendonly") == "yes" or settings.get("save"):
            value = "AOF" if settings.get("appendonly") == "yes" else f"RDB ({settings['save']})"
            return Finding(name="persistence", level="ok", value=value)
        advice = "Gateways give back what an empty Redis forgot while they live; to survive both at once use AOF."
        return Finding(name="persistence", level="warning", value="none", advice=advice)

    async def _output_buffers(self) -> Finding:
        settings = await self._config("client-output-buffer-limit")
        if settings is None:
            return _hidden("output buffers", "CONFIG GET")
        words = settings.get("client-output-buffer-limit", "").split()
        pubsub = words[words.index("pubsub") + 1 : words.index("pubsub") + 4] if "pubsub" in words else []
        is_small = bool(pubsub) and 0 < int(pubsub[0]) < 8 * 1024 * 1024
        advice = (
            "A burst may cut the gateways' subscriptions: streams then pause and are read from the log."
            if is_small
            else ""
        )
        level: Level = "warning" if is_small else "ok"
        return Finding(name="output buffers", level=level, value="pubsub " + " ".join(pubsub), advice=advice)

    async def _clock(self) -> Finding:
        seconds, micros = await self._store.ask("time", self._store.pool.queue, command("TIME"))
        gap_s = abs(int(seconds) + int(micros) / 1e6 - time.time())
        is_far = gap_s > MAX_CLOCK_GAP_S
        advice = "Harmless for Penstock, which goes by Redis' clock alone; your logs will disagree." if is_far else ""
        return Finding(name="clock", level="warning" if is_far else "ok", value=f"{gap_s:.2f} s apart", advice=advice)

    async def _rights(self) -> Finding:
        reply = await self._try(command("ACL", "WHOAMI"))
        user = reply.decode() if isinstance(reply, bytes) else "default"
        pool = self._store.pool
        needed = [
            ("EVALSHA", "0", "1", pool.queue),
            ("BLMOVE", pool.queue, pool.worker("w"), "LEFT", "RIGHT", "1"),
            ("XADD", "{inference:response:x}:log", "NOMKSTREAM", "1-1", "f", "v"),
            ("PUBLISH", "inference:response:x", "v"),
            ("PSUBSCRIBE", "inference:response:x.*"),
            ("LRANGE", pool.queue, "0", "1"),
        ]
        refused = []
        for words in needed:
            said = await self._try(command("ACL", "DRYRUN", user, *words))
            if isinstance(said, bytes) and said != b"OK":
                refused.append(words[0])
            elif isinstance(said, ReplyError):
                return _hidden("rights", "ACL DRYRUN")
        advice = "Allow the commands of docs/protocol.md on inference:* and {inference:*." if refused else ""
        value = f"{user} may not {', '.join(refused)}" if refused else f"{user} may do all that is needed"
        return Finding(name="rights", level="error" if refused else "ok", value=value, advice=advice)

    async def _try(self, one: Command) -> Any:
        """A command that managed servers often forbid: its error is a reply."""
        async with asyncio.timeout(5.0):
            return (await self._store.exchange("inspect", self._store.conn(self._store.pool.queue), (one,)))[0]

    async def _info(self, section: str) -> dict[str, str] | None:
        reply = await self._try(command("INFO", section))
        if not isinstance(reply, bytes):
            return None
        lines = (line.partition(":") for line in reply.decode().splitlines())
        return {name: value for name, colon, value in lines if colon}

    async def _config(self, *names: str) -> dict[str, str] | None:
        reply = await self._try(command("CONFIG", "GET", *names))
        if not isinstance(reply, list):
            return None
        texts = [word.decode() for word in reply]
        return dict(zip(texts[::2], texts[1::2], strict=True))


def _hidden(name: str, needs: str) -> Finding:
    advice = f"This server does not allow {needs}; look at its own console."
    return Finding(name=name, level="warning", value="hidden", advice=advice)


def _pairs(flat: list[bytes]) -> list[tuple[str, bytes]]:
    return [(name.decode(), score) for name, score in zip(flat[::2], flat[1::2], strict=True)]


def _info(about: bytes) -> WorkerInfo | None:
    try:
        info: WorkerInfo = decode_json(about, WorkerInfo)
    except WireError:
        return None  # a worker of another version
    return info
