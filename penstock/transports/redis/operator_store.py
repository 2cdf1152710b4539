"""The operators' verbs on Redis: the queue, the processes, lists of requests, the dead-letter list, the servers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hiredis import ReplyError

from penstock.errors import StoreUnavailable
from penstock.fleet import WorkerInfo
from penstock.transports.base import DeadJob, Finding, Holding, JobSummary, OperatorStore, Overview, engines_finding
from penstock.transports.redis import doctor as findings
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.base import RedisBase
from penstock.transports.redis.driver.command import command
from penstock.transports.redis.records import number
from penstock.transports.redis.refusals import Refused, shown
from penstock.transports.redis.summaries import summary_of
from penstock.wire import WireError, decode_json

log = logging.getLogger(__name__)


class RedisOperatorStore(RedisBase, OperatorStore):
    """`OperatorStore` over one `RedisClient`."""

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
            num_taken=max(number(clock[0]), number(clock[1]) - depth),
            gateways={gid: (float(score) - now_ms) / 1000 for gid, score in _pairs(gateways)},
            workers=tuple(
                Holding(worker=wid, lease_s=lease_s, held=tuple(map(shown, ids)), info=infos.get(wid))
                for (wid, lease_s), ids in zip(leases.items(), held, strict=True)
                if lease_s > 0 or ids or wid in infos  # not one that has left
            ),
            oldest=shown(oldest or b""),
            num_dead=num_dead,
        )

    async def waiting(self, limit: int = 10_000) -> list[str]:
        if limit < 1:
            return []
        queue = self._redis.pool.queue
        (ids,) = await self._redis.run_bulk("waiting", queue, command("LRANGE", queue, 0, limit - 1, on=(queue,)))
        return [shown(job_id) for job_id in ids]

    async def requests_of(self, caller: str, limit: int) -> list[str]:
        name = keys.caller(caller)[0]
        (ids,) = await self._redis.run_bulk("requests_of", name, command("LRANGE", name, 0, -1, on=(name,)))
        newest = dict.fromkeys(map(shown, ids))
        return list(newest)[: max(0, limit)]

    async def read_summary(self, job_ids: Sequence[str]) -> list[JobSummary | None]:
        looks = [(keys.job(job_id), scripts.read_summary(job_id)) for job_id in job_ids]
        replies = await self._redis.run_each("read_summary", looks, is_bulk=True)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise Refused(f"Redis refused to list requests: {reply}")
        return [summary_of(job_id, reply) if reply else None for job_id, reply in zip(job_ids, replies, strict=True)]

    async def dead(self) -> list[DeadJob]:
        return [job for _, job in await self._dead_entries()]

    async def remove_dead(self, job_id: str) -> bool:
        pool = self._redis.pool
        entries = [entry for entry, job in await self._dead_entries() if job.id == job_id]
        if not entries:
            return False
        removals = [command("LREM", pool.dead, 0, entry) for entry in dict.fromkeys(entries)]
        return any(await self._redis.run("remove_dead", pool.dead, *removals))

    async def inspect(self) -> list[Finding]:
        examiner = self._examiner
        try:
            found = await examiner.examine()
        except StoreUnavailable as error:
            return [findings.unreachable(error.message)]
        try:
            seen = await self.overview()
            waiting = findings.oldest_waiting(seen.depth, await examiner.age_s(seen.oldest))
            dead = await self.dead() if seen.num_dead else []
        except StoreUnavailable as error:  # `rights` most likely has the reason
            return [*found, findings.unreadable(error.message)]
        live = [one.info for one in seen.workers if one.lease_s > 0 and one.info is not None]
        engines = engines_finding(live)
        found += [findings.workers(seen), *([engines] if engines else []), waiting]
        return [*found, findings.dead_requests(seen.num_dead, [job.error for job in dead])]

    # ── below the verbs ──────────────────────────────────────────────────────────────────────────────────────────

    async def _dead_entries(self) -> list[tuple[bytes, DeadJob]]:
        """Each entry of the dead-letter list: its bytes and its `DeadJob`."""
        dead = self._redis.pool.dead
        found = []
        for entry in await self._redis.ask("dead", dead, command("LRANGE", dead, 0, -1, on=(dead,))):
            try:
                found.append((entry, decode_json(entry, DeadJob)))
            except WireError as error:
                log.warning("an entry of the dead-letter list cannot be read: %s", error)
        return found


def _pairs(flat: list[bytes]) -> list[tuple[str, bytes]]:
    return [(shown(name), score) for name, score in zip(flat[::2], flat[1::2], strict=True)]


def _info(about: bytes) -> WorkerInfo | None:
    try:
        info: WorkerInfo = decode_json(about, WorkerInfo)
    except WireError:
        return None  # a worker of another version
    return info
