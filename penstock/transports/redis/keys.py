"""Every name that Penstock has in Redis. Pure; knows nothing of connections.

`Q` is the queue of a pool: `inference:queue`, or `inference:queue:<pool>`. All keys of a pool hash to the slot of
`Q`, all keys of a request to that of its channel; no script touches two slots.

    key                                type      written by                             life
    Q                                  list      enqueue, hand_back, reap, …            bounded by max_queue_depth
    {Q}:workers                        zset      enlist, renew, reap                    7 days after the last use
    {Q}:gateways                       zset      tick                                   7 days
    {Q}:worker:<wid>                   list      BLMOVE, take, settle, hand_back, reap  7 days; bounded by its slots
    {Q}:about                          hash      enlist, renew, reap                    7 days
    {Q}:clock                          hash      pulse, amnesty, pushed, taken          7 days
    {Q}:dead                           list      add_dead                               7 days; trimmed to 1,000
    {inference:response:<id>}:job      hash      create, restore, claim, finish, …      deadline + retention
    {inference:response:<id>}:log      stream    emit, claim, finish, cancel, restore   the same
    inference:rate:{<key>}             string    charge                                 two windows
    inference:once:<caller>:<hash>     string    bind_key, unbind_key                   as long as the request
    {Q}:waiting:<caller>               list      enqueue                                7 days; its share of the queue
    {inference:caller:<c>}:requests    list      book, weigh                            as long as its requests; 1,000
    {inference:caller:<c>}:stored      zset      book, weigh                            the same; max_stored_per_caller
    {inference:caller:<c>}:bytes       hash      book, weigh                            the same
    inference:response:<id>            channel   each writer of the log
    inference:control:<wid or gid>     channel   cancel
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

QUEUE = "inference:queue"
RESPONSE = "inference:response:"
CONTROL = "inference:control:"
RATE = "inference:rate:"
ONCE = "inference:once:"
CALLER = "inference:caller:"

POOL_TTL_MS = 604_800_000  # 7 days. The scripts have the number themselves: a program of any language loads those files
MAX_LISTED = 1_000

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True, frozen=True)
class PoolKeys:
    """The names of one pool, built once. `ValueError` if the pool's name could break a key."""

    pool: str = ""
    queue: str = field(init=False)
    workers: str = field(init=False)
    gateways: str = field(init=False)
    about: str = field(init=False)
    clock: str = field(init=False)
    dead: str = field(init=False)

    def __post_init__(self) -> None:
        if self.pool and not _NAME.fullmatch(self.pool):
            raise ValueError(f"pool {self.pool!r}: up to 64 letters, digits, '.', '_' and '-' are allowed")
        queue = f"{QUEUE}:{self.pool}" if self.pool else QUEUE
        object.__setattr__(self, "queue", queue)
        for name in ("workers", "gateways", "about", "clock", "dead"):
            object.__setattr__(self, name, f"{{{queue}}}:{name}")

    def worker(self, worker_id: str) -> str:
        return f"{{{self.queue}}}:worker:{worker_id}"

    def waiting(self, caller_id: str) -> str:
        """The list of ids that a caller has pushed and that may count for its share of the queue."""
        return f"{{{self.queue}}}:waiting:{caller_id}"


def job(job_id: str) -> str:
    return f"{{{RESPONSE}{job_id}}}:job"


def log(job_id: str) -> str:
    return f"{{{RESPONSE}{job_id}}}:log"


def channel(job_id: str) -> str:
    return RESPONSE + job_id


def pattern(gateway_id: str) -> str:
    """A gateway's pattern of subscription: the channels of all ids that it makes. Its id has no glob characters."""
    return f"{RESPONSE}{gateway_id}.*"


def control(worker_id: str) -> str:
    return CONTROL + worker_id


def kind_of(key: str | bytes) -> str | None:
    """The type of a key that holds no request, as `repair` names it; None for a request's own, which is never removed
    for being of another."""
    name = key if isinstance(key, str) else key.decode(errors="replace")
    if name.startswith(ONCE):
        return "string"
    if name.startswith(QUEUE):
        return "list"
    what = name.partition("}:")[2].partition(":")[0]
    if name.startswith(f"{{{CALLER}"):
        return {"stored": "zset", "bytes": "hash"}.get(what, "list")
    if not name.startswith(f"{{{QUEUE}"):
        return None
    return {"workers": "zset", "gateways": "zset", "about": "hash", "clock": "clock"}.get(what, "list")


def rate(key: str) -> str:
    return f"{RATE}{{{key}}}"


def once(caller: str, digest: str) -> str:
    """An idempotency key: `digest` is of what the client sent."""
    return f"{ONCE}{caller}:{digest}"


def caller(caller_id: str) -> tuple[str, str, str]:
    """Of a caller: its newest requests, when each stored one expires, and the bytes of each."""
    tag = f"{{{CALLER}{caller_id}}}"
    return f"{tag}:requests", f"{tag}:stored", f"{tag}:bytes"
