"""The rights that a Redis user needs: every command of the protocol, on Penstock's keys and channels.

Commands that scripts run are among them, because an ACL is asked about those too. Pure; `examiner.py` asks.
"""

from __future__ import annotations

from penstock.transports.redis import keys
from penstock.transports.redis.driver.endpoint import Kind
from penstock.transports.redis.keys import PoolKeys

# One line for each command, as it could be sent. Q, W, Z, H, D: keys of the pool; J, L: of a request; C, P, T: its
# channel, a gateway's pattern, a worker's channel; R, O, M, S, B: of a
# caller (rate, idempotency key, list of requests, expiries, bytes).
_COMMANDS = """
    PING
    TIME
    CLIENT SETNAME penstock
    SCRIPT LOAD x
    EVALSHA x 1 Q
    EVAL x 1 Q
    PSUBSCRIBE P
    SUBSCRIBE C
    UNSUBSCRIBE C
    SUBSCRIBE T
    PUBLISH C x
    PUBLISH T x
    RPUSH Q x
    LPUSH Q x
    LPOS Q x
    LLEN Q
    LINDEX Q 0
    LRANGE W 0 1
    LREM W 0 x
    LMOVE Q W LEFT RIGHT
    BLMOVE Q W LEFT RIGHT 1
    DEL W
    LTRIM D 0 1
    ZADD Z 1 x
    ZREM Z x
    ZSCORE Z x
    ZCOUNT Z 0 1
    ZRANGE Z 0 1
    ZRANGEBYSCORE Z 0 1
    ZREMRANGEBYSCORE Z 0 1
    HGET H x
    HMGET J x
    HGETALL H
    HSET J x x
    HSETNX J x x
    HDEL H x
    HINCRBY J x 1
    UNLINK J L
    PEXPIRE J 1
    PEXPIREAT L 1
    PEXPIRETIME J
    XADD L NOMKSTREAM 1-1 f x
    XRANGE L - +
    XREVRANGE L + - COUNT 1
    GET R
    SET R x PX 1
    GET O
    SET O x PX 1
    DEL O
    PTTL S
    ZCARD S
    LPUSH M x
    LRANGE M 0 1
"""


# The commands that find the server: the master is asked whether it is one, a cluster's nodes for their map. A slot that
# moves is asked for with ASKING.
_TO_FIND: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "single": (),
    "sentinel": (("ROLE",),),
    "cluster": (("CLUSTER", "SLOTS"), ("ASKING",)),
}
_CONTAINERS = ("CLIENT", "CLUSTER", "SCRIPT")


def name_of(words: tuple[str, ...]) -> str:
    """A command as an ACL rule spells it: `XADD`, `CLUSTER|SLOTS`."""
    return "|".join(words[:2]) if words[0] in _CONTAINERS else words[0]


def needed(pool: PoolKeys, kind: Kind = "single") -> list[tuple[str, ...]]:
    """Each command as its words, with keys of `pool` and of an imaginary request `x.x`."""
    pool_keys = {"Q": pool.queue, "W": pool.worker("x"), "Z": pool.workers, "H": pool.about, "D": pool.dead}
    request = {"J": keys.job("x.x"), "L": keys.log("x.x"), "C": keys.channel("x.x"), "P": keys.pattern("x")}
    others = {"T": keys.control("x"), "R": keys.rate("x"), "O": keys.once("x", "x")}
    others |= zip("MSB", keys.caller("x"), strict=True)
    names = pool_keys | request | others
    lines = (line.split() for line in _COMMANDS.strip().splitlines())
    return [(words[0], *(names.get(word, word) for word in words[1:])) for words in lines] + [*_TO_FIND[kind]]
