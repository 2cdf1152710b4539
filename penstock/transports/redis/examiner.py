"""Examines the servers for `penstock doctor`, and before a process begins. Reads; `doctor.py` judges.

A server that hides INFO, CONFIG or ACL, as managed ones do, makes a finding less certain, never a failure.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

from hiredis import ReplyError

from penstock.errors import ConfigError, StoreUnavailable
from penstock.transports.base import Finding
from penstock.transports.redis import doctor as findings
from penstock.transports.redis import keys, rights
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.command import Command, command
from penstock.transports.redis.driver.connection import Connection
from penstock.transports.redis.records import number

log = logging.getLogger(__name__)

NUM_PINGS = 20
_SETTINGS = ("maxmemory", "maxmemory-policy", "save", "appendonly", "client-output-buffer-limit")


class Examiner:
    """Looks at the servers of one client."""

    def __init__(self, client: RedisClient) -> None:
        self._redis = client

    async def check(self) -> None:
        """`ConfigError` for a server that would lose requests quietly, or that is too old for the protocol.

        What a server hides is not an error. Logs once if others could read the traffic.
        """
        for finding in await self._servers(is_brief=True):
            if finding.level == "error":
                raise ConfigError(f"Redis, {finding.name}: {finding.value}. {finding.advice}.")
        network = findings.network(self._redis.deployment)
        if network.level != "ok":
            log.warning("Redis at %s. %s", network.value, network.advice)

    async def examine(self) -> list[Finding]:
        """Everything that concerns the servers and the way to them. Raises `StoreUnavailable`."""
        found = [await self._round_trip(), *await self._servers(is_brief=False)]
        return [*found, await self._clock(), await self._rights(), findings.network(self._redis.deployment)]

    async def age_s(self, job_id: str) -> float | None:
        """For how long a job has waited, seconds; None for no job, or one that has expired."""
        if not job_id:
            return None
        look = command("HGET", keys.job(job_id), "created"), command("TIME")
        created, (seconds, micros) = await self._redis.run("oldest", keys.job(job_id), *look)
        return int(seconds) + int(micros) / 1e6 - number(created) / 1000 if number(created) else None

    # ── below ────────────────────────────────────────────────────────────────────────────────────────────────────

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

    async def _rights(self) -> Finding:
        """Asks the ACL, for each command on keys of ours; else checks whether the server knows the commands at all."""
        conn = self._redis.conn(self._redis.pool.queue)
        needed = rights.needed(self._redis.pool, self._redis.deployment.kind)
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
