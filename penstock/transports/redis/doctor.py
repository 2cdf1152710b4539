"""The findings about a store, from what was read there: each function judges one thing. Pure; reads nothing.

`info` is Redis' INFO and `config` its CONFIG as dictionaries; None where the server does not show them, as managed
ones do not. `examiner.py` does the reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from penstock.transports.base import UNREADABLE, Finding, Level, Overview
from penstock.transports.redis.driver.endpoint import Deployment

Facts = Mapping[str, str] | None

OLDEST_REDIS = (7, 0)
SLOW_MS = 5.0
MAX_CLOCK_GAP_S = 1.0
LONG_WAIT_S = 60.0
FULL = 0.8
SMALL_BUFFER = 8 * 1024 * 1024

_MEND = (
    "Fix the rights first. A key of a pool that is of the wrong type is removed by the next gateway or "
    "worker that needs it, and logged there"
)
_BADNESS: dict[Level, int] = {"ok": 0, "warning": 1, "error": 2}
_EVICTION = (
    "An evicting policy drops queued requests and their tokens without a word; every key of Penstock expires, so a "
    "volatile-* policy does it as well. Set maxmemory-policy noeviction: a full server then refuses new requests "
    "(503), and running ones finish"
)


def worst(findings: Sequence[Finding]) -> Finding:
    """The worst of one check's findings on several servers."""
    finding = max(findings, key=lambda one: _BADNESS[one.level])
    if len(findings) == 1:
        return finding
    value = f"{finding.value} (of {len(findings)} servers, the worst)"
    return Finding(name=finding.name, level=finding.level, value=value, advice=finding.advice)


def unreachable(reason: str) -> Finding:
    advice = "Is it running, and does PENSTOCK_REDIS_URL name it? Gateways answer 503 until it is back."
    return Finding(name="round trip", level="error", value=f"no answer: {reason}", advice=advice)


def unreadable(reason: str) -> Finding:
    return Finding(name="workers", level="error", value=f"cannot be read: {reason}", advice=_MEND)


def round_trip(median_ms: float, num: int) -> Finding:
    is_slow = median_ms > SLOW_MS
    advice = "Every step of a worker is a round trip: put Redis nearer to workers and gateways." if is_slow else ""
    return _finding("round trip", "warning" if is_slow else "ok", f"{median_ms:.2f} ms (median of {num})", advice)


def version(info: Facts) -> Finding:
    if info is None:
        return _hidden("version", "INFO")
    if "valkey_version" in info:
        return _finding("version", "ok", f"Valkey {info['valkey_version']}")
    text = info.get("redis_version", "unknown")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < OLDEST_REDIS:
        return _finding("version", "error", f"Redis {text}", "Redis 7.0 or newer is needed, or Valkey")
    return _finding("version", "ok", f"Redis {text}")


def role(info: Facts) -> Finding:
    if info is None:
        return _hidden("role", "INFO")
    name = info.get("role", "master")
    if name != "master":
        advice = "Writes go to a master only: name that one, or the sentinels (redis+sentinel://)."
        return _finding("role", "error", name, advice)
    return _finding("role", "ok", f"master, {info.get('connected_slaves', '0')} replicas")


def memory_policy(info: Facts, config: Facts) -> Finding:
    """`error`: this server evicts, or will. Without a limit no policy has anything to do yet."""
    if info is not None and "maxmemory_policy" in info:
        limit, policy = int(info.get("maxmemory", 0)), info["maxmemory_policy"]
    elif config is not None:
        limit, policy = int(config.get("maxmemory", 0)), config.get("maxmemory-policy", "noeviction")
    else:
        return _hidden("memory policy", "INFO and CONFIG GET")
    used = int((info or {}).get("used_memory", 0))
    value = f"{policy}, maxmemory {_size(limit) if limit else 'unlimited'}" + (f", {_size(used)} used" if used else "")
    if policy != "noeviction":
        return _finding("memory policy", "error" if limit else "warning", value, _EVICTION)
    if limit and used > FULL * limit:
        advice = "When it is full new requests are refused (503). Give it more, or keep requests shorter (retention_s)."
        return _finding("memory policy", "warning", value, advice)
    return _finding("memory policy", "ok", value)


def persistence(info: Facts, config: Facts) -> Finding:
    info = info or {}
    if info.get("rdb_last_bgsave_status", "ok") != "ok" or info.get("aof_last_write_status", "ok") != "ok":
        advice = "Redis cannot save, and may refuse writes for that: look at its log and its disk."
        return _finding("persistence", "error", "the last save failed", advice)
    if info.get("aof_enabled") == "1" or (config or {}).get("appendonly") == "yes":
        return _finding("persistence", "ok", "AOF")
    if config is None:
        return _hidden("persistence", "CONFIG GET")
    if config.get("save"):
        advice = "Data after the last snapshot are lost with the machine; AOF loses a second at most."
        return _finding("persistence", "ok", f"RDB ({config['save']})", advice)
    advice = "Gateways give back what an empty Redis forgot while they live; to survive both at once use AOF."
    return _finding("persistence", "warning", "none", advice)


def output_buffers(config: Facts) -> Finding:
    if config is None:
        return _hidden("output buffers", "CONFIG GET")
    words = config.get("client-output-buffer-limit", "").split()
    pubsub = words[words.index("pubsub") + 1 : words.index("pubsub") + 4] if "pubsub" in words else []
    value, hard = "pubsub " + " ".join(pubsub), int(pubsub[0]) if pubsub else 0
    if pubsub and not hard:
        advice = "Without a limit a gateway that does not read fills the server. The default is 32mb 8mb 60."
        return _finding("output buffers", "warning", value, advice)
    if pubsub and hard < SMALL_BUFFER:
        advice = "A burst may cut the gateways' subscriptions: streams then pause and are read from the log."
        return _finding("output buffers", "warning", value, advice)
    return _finding("output buffers", "ok", value)


def clock(gap_s: float) -> Finding:
    is_far = abs(gap_s) > MAX_CLOCK_GAP_S
    advice = "Harmless for Penstock, which goes by Redis' clock alone; your logs will disagree." if is_far else ""
    return _finding("clock", "warning" if is_far else "ok", f"{gap_s:+.2f} s against this machine", advice)


def rights(user: str, refused: Iterable[str] | None) -> Finding:
    """`refused`: commands that the user may not run on our keys; None when the server does not tell."""
    if refused is None:
        return _hidden("rights", "ACL DRYRUN")
    names = list(dict.fromkeys(refused))
    if not names:
        return _finding("rights", "ok", f"{user} may do all that is needed")
    rules = " ".join(f"+{name.lower()}" for name in names)
    advice = (
        f"ACL SETUSER {user} ~inference:* ~{{inference:* &* {rules} (all channels: a gateway subscribes to a pattern "
        "of its own, and an ACL allows a pattern only when it is spelt out)."
    )
    return _finding("rights", "error", f"{user} may not {', '.join(names)}", advice)


def network(deployment: Deployment) -> Finding:
    """Whether others may read the traffic: prompts and answers travel to Redis and stay there for a while."""
    outside = [one for one in deployment.known if one.path is None and not _is_loopback(one.host)]
    if not outside:
        return _finding("network", "ok", "this machine only")
    data = deployment.master if deployment.kind == "sentinel" else outside[0]
    lacks = [word for word, is_there in (("TLS", data.tls), ("a password", data.password)) if not is_there]
    if not lacks:
        return _finding("network", "ok", "TLS and a password")
    advice = "Prompts and answers can be read by anyone who reaches that network. Use rediss:// and a password there."
    return _finding("network", "warning", f"{outside[0].host} is reached without {' and without '.join(lacks)}", advice)


def workers(seen: Overview) -> Finding:
    live = [one for one in seen.workers if one.lease_s > 0]
    served = {tuple(sorted(one.info.models)) for one in live if one.info is not None}
    if not live:
        return _finding("workers", "warning", "none alive", "Start one: penstock worker. Until then requests wait.")
    if len(served) > 1:
        names = " and ".join(", ".join(models) or "nothing" for models in sorted(served))
        advice = "Workers of one pool must serve the same models: stop one kind, or give it a pool (PENSTOCK_POOL)."
        return _finding("workers", "error", f"{len(live)} alive, which disagree: {names}", advice)
    value = f"{len(live)} alive, serving {', '.join(next(iter(served), ())) or 'what this version cannot read'}"
    dead = [one for one in seen.workers if one.lease_s <= 0 and one.held]
    if dead:
        return _finding("workers", "warning", f"{value}; {len(dead)} dead", "Their requests return to the queue.")
    return _finding("workers", "ok", value)


def oldest_waiting(depth: int, age_s: float | None) -> Finding:
    if not depth or age_s is None:
        return _finding("oldest waiting", "ok", f"none, {depth} in the queue" if not depth else "unknown")
    is_long = age_s > LONG_WAIT_S
    advice = "More is asked than the workers answer: start more of them, or lower max_queue_depth." if is_long else ""
    return _finding("oldest waiting", "warning" if is_long else "ok", f"{age_s:.1f} s, {depth} in the queue", advice)


def dead_requests(num: int, errors: Sequence[str]) -> Finding:
    """`errors`: of those among them that could be listed."""
    if not num:
        return _finding("dead requests", "ok", "0")
    num_unreadable = sum(error == UNREADABLE for error in errors)
    poisoned = "took several workers down: penstock dead show ID, then redrive or drop"
    unreadable = (
        "cannot be read was never run, and cannot be redriven: another producer wrote it, or something changed it in "
        "Redis. penstock dead show ID has the reason; then penstock dead drop ID"
    )
    if not num_unreadable:
        return _finding("dead requests", "warning", str(num), f"Each of them {poisoned}.")
    value = f"{num}, of which {num_unreadable} cannot be read"
    if num_unreadable == num:
        return _finding("dead requests", "warning", value, f"What {unreadable}.")
    return _finding("dead requests", "warning", value, f"What {unreadable}. Each other one {poisoned}.")


def _finding(name: str, level: Level, value: str, advice: str = "") -> Finding:
    return Finding(name=name, level=level, value=value, advice=advice)


def _hidden(name: str, needs: str) -> Finding:
    return _finding(name, "warning", "hidden", f"This server does not allow {needs}; check its own console.")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
