"""An operator's verbs on Redis: the live processes, the dead-letter list, and the checks of a doctor.

Reads; `doctor.py` judges. A server that hides INFO, CONFIG or ACL, as managed ones do, makes a
finding less certain, never a failure.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

from hiredis import ReplyError

from penstock.errors import ConfigError, StoreUnavailable
from penstock.fleet import WorkerInfo
from penstock.transports.base import DeadJob, Finding, Holding, Overview, Transport
from penstock.transports.redis import doctor as findings
from penstock.transports.redis import keys, rights
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.command import Command, command
from penstock.transports.redis.driver.connection import Connection
from penstock.transports.redis.driver.endpoint import parse
from penstock.transports.redis.refusals import shown
from penstock.wire import WireError, decode_json

log = logging.getLogger(__name__)

NUM_PINGS = 20
_SETTINGS = ("maxmemory", "maxmemory-policy", "save", "appendonly", "client-output-buffer-limit")


class OperatorSide(Transport):
    """The verbs of `RedisTransport` for operators."""

    _redis: RedisClient
    _url: str

    async def overview(self) -> Overview:
        """Two pipelines, not one moment: an id that moves in between may be seen twice or not at all."""
        pool, client = self._redis.pool, self._redis
        depth, clock, gateways, workers, about, oldest, num_dead, now = await client.run(
            "overview",
            pool.queue,
            command("LLEN", pool.queue),
            command("HMGET", pool.clock, "taken", "pushed"),
            command("ZRANGE", pool.gateways, 0, -1, "WITHSCORES"),
            command("ZRANGE", pool.workers, 0, -1, "WITHSCORES"),
            command("HGETALL", pool.about),
            command("LINDEX", pool.queue, 0),
            command("LLEN", pool.dead, on=(pool.dead,)),
            command("TIME"),
        )
        now_ms = int(now[0]) * 1000 + int(now[1]) / 1000
        leases = {wid: (float(score) - now_ms) / 1000 for wid, score in _pairs(workers)}
        infos = {shown(wid): _info(json) for wid, json in zip(about[::2], about[1::2], strict=True)}
        lists = [command("LRANGE", pool.worker(wid), 0, -1) for wid in leases]
        held = await client.run("overview", pool.queue, *lists) if lists else []
        return Overview(
            depth=depth,
            num_taken=max(_number(clock[0]), _number(clock[1]) - depth),
            gateways={gid: (float(score) - now_ms) / 1000 for gid, score in _pairs(gateways)},
            workers=tuple(
                Holding(worker=wid, lease_s=lease_s, held=tuple(map(shown, ids)), info=infos.get(wid))
                for (wid, lease_s), ids in zip(leases.items(), held, strict=True)
                if lease_s > 0 or ids or wid in infos  # not one that has left
            ),
            oldest=shown(oldest or b""),
            num_dead=num_dead,
        )

    async def dead(self) -> list[DeadJob]:
        return [job for _, job in await self._dead_entries()]

    async def remove_dead(self, job_id: str) -> bool:
        pool = self._redis.pool
        entries = [entry for entry, job in await self._dead_entries() if job.id == job_id]
        if not entries:
            return False
        removals = [command("LREM", pool.dead, 0, entry) for entry in dict.fromkeys(entries)]
        return any(await self._redis.run("remove_dead", pool.dead, *removals))

    async def check(self) -> None:
        """`ConfigError` for a server that would lose requests quietly, or that is too old for the protocol.

        What a server hides is not an error. Logs once if others could read the traffic.
        """
        for finding in await self._servers(is_brief=True):
            if finding.level == "error":
                raise ConfigError(f"Redis, {finding.name}: {finding.value}. {finding.advice}.")
        network = findings.network(parse(self._url))
        if network.level != "ok":
            log.warning("Redis at %s. %s", network.value, network.advice)

    async def inspect(self) -> list[Finding]:
        try:
            found = [await self._round_trip(), *await self._servers(is_brief=False)]
            found += [await self._clock(), await self._rights(), findings.network(parse(self._url))]
        except StoreUnavailable as error:
            return [findings.unreachable(error.message)]
        try:
            seen = await self.overview()
            waiting = findings.oldest_waiting(seen.depth, await self._age_s(seen.oldest))
        except StoreUnavailable as error:  # `rights` most likely has the reason
            return [*found, findings.unreadable(error.message)]
        return [*found, findings.workers(seen), waiting, findings.dead_requests(seen.num_dead)]

    # ── below the verbs ──────────────────────────────────────────────────────────────────────────────────────────

    async def _dead_entries(self) -> list[tuple[bytes, DeadJob]]:
        """Each entry of the dead-letter list: its bytes and its `DeadJob`."""
        dead = self._redis.pool.dead
        found = []
        for entry in await self._redis.ask("dead", dead, command("LRANGE", dead, 0, -1, on=(dead,))):
            try:
                found.append((entry, decode_json(entry, DeadJob)))
            except WireError as error:
                log.warning("an entry of the dead list cannot be read: %s", error)
        return found

    async def _servers(self, *, is_brief: bool) -> list[Finding]:
        """The findings on each server of ours. On a cluster: the worst, of those that answer."""
        found: dict[str, list[Finding]] = {}
        away: list[StoreUnavailable] = []
        for conn in await self._redis.every():
            try:
                info, config = _read_info(*await self._look(conn, command("INFO"))), await self._config(conn)
            except StoreUnavailable as error:
                away.append(error)
                continue
            about = [findings.version(info), findings.memory_policy(info, config)]
            if not is_brief:
                about += [findings.role(info), findings.persistence(info, config), findings.output_buffers(config)]
            for finding in about:
                found.setdefault(finding.name, []).append(finding)
        if away and not found:
            raise away[0]
        return [findings.worst(same) for same in found.values()]

    async def _round_trip(self) -> Finding:
        times = []
        for _ in range(NUM_PINGS):
            started = time.perf_counter()
            await self._redis.ask("ping", self._redis.pool.queue, command("PING"))
            times.append((time.perf_counter() - started) * 1000)
        return findings.round_trip(statistics.median(times), NUM_PINGS)

    async def _clock(self) -> Finding:
        before = time.time()
        seconds, micros = await self._redis.ask("time", self._redis.pool.queue, command("TIME"))
        return findings.clock(int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2)

    async def _age_s(self, job_id: str) -> float | None:
        """For how long a job has waited, seconds; None for no job, or one that has expired."""
        if not job_id:
            return None
        look = command("HGET", keys.job(job_id), "created"), command("TIME")
        created, (seconds, micros) = await self._redis.run("oldest", keys.job(job_id), *look)
        return int(seconds) + int(micros) / 1e6 - _number(created) / 1000 if _number(created) else None

    async def _rights(self) -> Finding:
        """Asks the ACL, for each command on keys of ours; else checks whether the server knows the commands at all."""
        conn = self._redis.conn(self._redis.pool.queue)
        needed = rights.needed(self._redis.pool, parse(self._url).kind)
        (who,) = await self._look(conn, command("ACL", "WHOAMI"))
        user = who.decode() if isinstance(who, bytes) else "this user"
        replies = await self._look(conn, *(command("ACL", "DRYRUN", user, *words) for words in needed))
        refused: list[str] | None = [
            rights.name_of(words) for words, reply in zip(needed, replies, strict=True) if _is_denied(reply)
        ]
        if any(isinstance(reply, ReplyError) and not _is_denied(reply) for reply in replies):
            (known,) = await self._look(conn, command("COMMAND", "INFO", *(words[0] for words in needed)))
            is_listed = isinstance(known, list) and None in known
            refused = (
                [rights.name_of(words) for words, is_known in zip(needed, known, strict=True) if not is_known]
                if is_listed
                else None
            )
        return findings.rights(user, refused)

    async def _look(self, conn: Connection, *commands: Command) -> list[Any]:
        """Commands that servers may forbid: an error is a reply."""
        return await self._redis.exchange("inspect", conn, commands)

    async def _config(self, conn: Connection) -> dict[str, str] | None:
        """Each setting asked by itself: before Redis 7 CONFIG GET takes one name."""
        settings: dict[str, str] = {}
        for reply in await self._look(conn, *(command("CONFIG", "GET", name) for name in _SETTINGS)):
            if isinstance(reply, list):
                texts = [word.decode() for word in reply]
                settings |= zip(texts[::2], texts[1::2], strict=True)
        return settings or None


def _read_info(reply: Any) -> dict[str, str] | None:
    if not isinstance(reply, bytes):
        return None
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _is_denied(reply: Any) -> bool:
    """Whether this is ACL DRYRUN's reply for a command that is forbidden, or that the server does not have."""
    if isinstance(reply, ReplyError):
        return str(reply).startswith("ERR Command")
    return bool(reply != b"OK")


def _pairs(flat: list[bytes]) -> list[tuple[str, bytes]]:
    return [(shown(name), score) for name, score in zip(flat[::2], flat[1::2], strict=True)]


def _number(text: bytes | None) -> int:
    """A number of ours; 0 for none, and for what is not one."""
    return int(text) if text is not None and len(text) < 16 and text.lstrip(b"-").isdigit() else 0


def _info(about: bytes) -> WorkerInfo | None:
    try:
        info: WorkerInfo = decode_json(about, WorkerInfo)
    except WireError:
        return None  # a worker of another version
    return info
