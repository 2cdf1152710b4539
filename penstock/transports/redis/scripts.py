"""Commands to Redis as values: a packed command, and each Lua script with a typed signature.

The promise of a script is at the head of its file. A script is called by its hash; `Connection`s load all of
them when they connect, and a server that has lost them since is sent the source. Pure; no I/O but reading the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import chain
from typing import Literal, NamedTuple

from msgspec.structs import replace

from penstock.event import Done, Terminal
from penstock.job import Job
from penstock.transports.base import EndReason, RateLimit
from penstock.transports.quota import Share
from penstock.transports.redis import keys
from penstock.transports.redis.driver.command import Argument, Command, command, pack
from penstock.transports.redis.keys import PoolKeys
from penstock.wire import encode_event


class Script:
    """One file of `lua/`, called with keys and arguments."""

    __slots__ = ("name", "sha1", "source")

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = resources.files(__package__).joinpath("lua", f"{name}.lua").read_bytes()
        self.sha1 = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    def __call__(self, on: Sequence[str | bytes], *args: Argument) -> Command:
        packed = pack(("EVALSHA", self.sha1, len(on), *on, *args))
        return Command(packed, ("EVAL", self.source, len(on), *on, *args), on)


_create = Script("create")
_restore = Script("restore")
_restore_end = Script("restore_end")
_discard = Script("discard")
_claim = Script("claim")
_append = Script("append")
_finish = Script("finish")
_cancel = Script("cancel")
_requeue = Script("requeue")
_rerun = Script("rerun")
_adopt = Script("adopt")
_read_summary = Script("read_summary")
_shorten = Script("shorten")
_delete = Script("delete")
_enqueue = Script("enqueue")
_requeue_if_missing = Script("requeue_if_missing")
_withdraw = Script("withdraw")
_take = Script("take")
_settle = Script("settle")
_hand_back = Script("hand_back")
_enlist = Script("enlist")
_renew = Script("renew")
_reap = Script("reap")
_tick = Script("tick")
_charge = Script("charge")
_bind_key = Script("bind_key")
_unbind_key = Script("unbind_key")
_add_dead = Script("add_dead")
_repair = Script("repair")
_book = Script("book")
_weigh = Script("weigh")

SCRIPTS: tuple[Script, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Script))
PRELOAD: tuple[tuple[str | bytes, ...], ...] = tuple(("SCRIPT", "LOAD", script.source) for script in SCRIPTS)


def _request(job_id: str) -> tuple[str, str]:
    return keys.job(job_id), keys.log(job_id)


# ── a request's slot ─────────────────────────────────────────────────────────────────────────────────────────────────


class Birth(NamedTuple):
    """The words of a new job's hash. `about`: what lists show of it, JSON. `marks`: whether it is unread."""

    job: bytes
    model: str
    disconnect: str
    owner: str
    timeout_ms: int
    retention_ms: int
    about: bytes
    marks: tuple[Literal["unread"], ...] = ()


def create(job_id: str, birth: Birth, floor: int) -> Command:
    return _create(_request(job_id), *birth[:6], floor, birth.about, *birth.marks)


def restore(job_id: str, birth: Birth, attempt: int, tokens: Iterable[bytes]) -> Command:
    """`tokens`: each one as a JSON string."""
    return _restore(_request(job_id), *birth[:6], attempt, job_id, birth.about, *birth.marks, *tokens)


def restore_end(
    job_id: str, birth: Birth, attempt: int, times_ms: Sequence[int], end: Terminal, tokens: Iterable[bytes]
) -> Command:
    """`times_ms`: the arguments 10 to 14. The script sets attempt and `seq` of `end`; `tokens` include its own."""
    head = (*birth[:6], attempt, job_id, birth.about)
    kind = "done" if isinstance(end, Done) else "failed"
    rest = encode_event(replace(end, attempt=0, seq=0, tokens=())).partition(b',"seq":0')[2]
    return _restore_end(_request(job_id), *head, *times_ms, kind, rest, *tokens)


def discard(job_id: str) -> Command:
    return _discard(_request(job_id))


def claim(job_id: str, worker_id: str, take_from: str | bytes, *, lives: bool) -> Command:
    """`lives`: the worker that it may be taken from is not known to be dead: `settle` returned `LIVES`."""
    return _claim(_request(job_id), job_id, worker_id, take_from, *(("lives",) if lives else ()))


def append(job_id: str, attempt: int, frames: Iterable[tuple[int, int, bytes]]) -> Command:
    """`frames`: tokens before, tokens after, bytes."""
    return _append((keys.log(job_id),), job_id, attempt, *(word for frame in frames for word in frame))


def finish(job_id: str, attempt: int, seq: int, frame: bytes, first_ms: int) -> Command:
    """`seq`: tokens before the frame. `first_ms`: when the first token came, on Redis' clock; 0 if unknown."""
    return _finish(_request(job_id), job_id, attempt, seq, frame, first_ms)


def cancel(job_id: str, reason: EndReason, owner: str | None, keep_ms: int) -> Command:
    """`keep_ms`: how long at most what a client or an operator cancels is kept."""
    return _cancel(_request(job_id), job_id, reason, owner or "", keep_ms)


def requeue(job_id: str, attempt: int, worker_id: str) -> Command:
    return _requeue((keys.job(job_id),), attempt, worker_id)


def rerun(job_id: str, attempt: int, worker_id: str) -> Command:
    return _rerun(_request(job_id), job_id, attempt, worker_id)


def shorten(job_id: str, job: bytes) -> Command:
    return _shorten((keys.job(job_id),), job)


def delete(job_id: str) -> Command:
    return _delete(_request(job_id))


def read_summary(job_id: str) -> Command:
    return _read_summary(_request(job_id))


def adopt(job_id: str, gateway_id: str, *, is_read: bool) -> Command:
    return _adopt((keys.job(job_id),), gateway_id, *(() if is_read else ("unread",)))


# ── a queue's slot ───────────────────────────────────────────────────────────────────────────────────────────────────


def enqueue(
    pool: PoolKeys,
    job_id: str,
    max_depth: int,
    where: Literal["tail", "head"],
    *,
    is_again: bool,
    caller: str = "",
    max_of_caller: int = 0,
) -> Command:
    """`max_of_caller`: how many of `caller` may wait; 0 for no limit."""
    own = ((pool.waiting(caller),), (max_of_caller,)) if max_of_caller else ((), ())
    return _enqueue((pool.queue, pool.clock, *own[0]), job_id, max_depth, where, "once" if is_again else "", *own[1])


def requeue_if_missing(pool: PoolKeys, job_id: str) -> Command:
    return _requeue_if_missing((pool.queue, pool.clock), job_id)


def withdraw(pool: PoolKeys, job_id: str) -> Command:
    return _withdraw((pool.queue, pool.clock), job_id)


def take(pool: PoolKeys, worker_id: str, want: int) -> Command:
    return _take((pool.queue, pool.worker(worker_id), pool.workers, pool.clock), worker_id, want)


# The answers of `settle`.
IS_DEAD, SETTLED, LIVES = 0, 1, 2


def settle(pool: PoolKeys, worker_id: str, other: bytes, job_id: str) -> Command:
    return _settle((_list_of(pool, other), pool.worker(worker_id), pool.workers, pool.clock), other, job_id, "lives")


def hand_back(pool: PoolKeys, worker_id: str, job_ids: Iterable[str]) -> Command:
    return _hand_back((pool.queue, pool.worker(worker_id), pool.clock), *job_ids)


# `lease` is empty outside tests: the scripts have the length of a lease, the same for every process.


def enlist(pool: PoolKeys, worker_id: str, about: bytes, lease: Sequence[int]) -> Command:
    return _enlist((pool.workers, pool.about, pool.clock, pool.gateways), worker_id, about, *lease)


def renew(pool: PoolKeys, worker_id: str, about: bytes, lease: Sequence[int]) -> Command:
    on = (pool.workers, pool.about, pool.clock, pool.worker(worker_id), pool.gateways)
    return _renew(on, worker_id, about, *lease)


def reap(pool: PoolKeys, worker_id: str | bytes, *, is_leaving: bool = False) -> Command:
    """`worker_id`: bytes as they stand among the workers; those need not be UTF-8."""
    held = pool.worker(worker_id) if isinstance(worker_id, str) else _list_of(pool, worker_id)
    on = (pool.queue, held, pool.workers, pool.about, pool.clock)
    return _reap(on, worker_id, "leave" if is_leaving else "reap")


def tick(pool: PoolKeys, gateway_id: str, away_ms: int, lease: Sequence[int]) -> Command:
    return _tick((pool.gateways, pool.workers, pool.about, pool.clock, pool.queue), gateway_id, away_ms, *lease)


def drop(pool: PoolKeys, worker_id: str, job_id: str) -> Command:
    """Remove a finished job from the worker's list. The oldest is at its head, and nearly always it is that one."""
    return command("LREM", pool.worker(worker_id), 1, job_id)


def add_dead(pool: PoolKeys, worker_id: str, entry: bytes, job_id: str | bytes) -> Command:
    """Add a request that cannot run to the dead-letter list, without its prompt; remove it from the worker's list."""
    return _add_dead((pool.dead, pool.worker(worker_id)), entry, job_id)


def repair(on: Sequence[str | bytes], kinds: Sequence[str]) -> Command:
    """`kinds`: for each key the type that it must have, as `keys.kind_of` names it."""
    return _repair(on, *kinds)


def _list_of(pool: PoolKeys, worker_id: bytes) -> bytes:
    return pool.worker("").encode() + worker_id


# ── a caller's slot ──────────────────────────────────────────────────────────────────────────────────────────────────


def charge(key: str, limit: RateLimit, cost: int) -> Command:
    return _charge((keys.rate(key),), limit.rpm, limit.burst, cost)


def book(job: Job, request: int, answer: int, life_ms: int, share: Share) -> Command:
    """`request`, `answer`: bytes of the request, and the most of its answer. `life_ms`: how long it is kept at most."""
    limits = (share.max_stored, share.max_stored_bytes, keys.MAX_LISTED)
    return _book(keys.caller(job.caller), job.id, request, answer, life_ms, *limits)


Weight = tuple[str, int, int, int | str]  # id, bytes of its answer, how long it is kept, bytes of its request


def weigh(caller: str, weights: Iterable[Weight]) -> Command:
    """How long it is kept: ms from now on, 0 if it was not admitted. Bytes of the request: "" for as it was booked."""
    return _weigh(keys.caller(caller), *chain.from_iterable(weights))


def bind_key(name: str, job_id: str, body_hash: str, keep_ms: int, instead_of: str) -> Command:
    return _bind_key((name,), job_id, body_hash, keep_ms, instead_of)


def unbind_key(name: str, job_id: str) -> Command:
    return _unbind_key((name,), job_id)
