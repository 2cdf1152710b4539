"""How many processes, how much memory and network a load takes: arithmetic over measured costs, for `penstock plan`.

Linear in tokens, requests and streams; every process may use a share (`headroom`) of one core. A figure whose cost was
not measured has no value, and names the missing cost. No I/O; knows nothing of engines, which come on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from penstock.errors import ConfigError
from penstock.planner.costs import Costs

MB = 1e6  # decimal, as network and sizes of memory are bought
RSS_MB = 2**20  # what the kernel's kB add up to
MOST = 1e12  # of anything: beyond it is a slip of the keyboard


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The load, at its peak. `slots`: sequences that one worker runs at once; `max_connections`: of one gateway
    process; `cores`: of one machine, 0 for not asked. Raises `ConfigError` for an invalid load.
    """

    tokens_per_s: float
    streams: int
    tokens_per_answer: float = 256.0
    retention_s: float = 10.0
    headroom: float = 0.6
    cores: int = 0
    slots: int = 256
    max_connections: int = 10_000

    def __post_init__(self) -> None:
        least = {"tokens_per_s": 1.0, "streams": 1.0, "tokens_per_answer": 1.0, "retention_s": 0.0, "headroom": 0.01}
        least |= {"cores": 0.0, "slots": 1.0, "max_connections": 1.0}
        for name, bound in least.items():
            value = getattr(self, name)
            most = 1.0 if name == "headroom" else MOST
            if not bound <= value <= most:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag}: {value:g} is not allowed; the least is {bound:g}, the most {most:g}")

    @property
    def requests_per_s(self) -> float:
        return self.tokens_per_s / self.tokens_per_answer


@dataclass(frozen=True)
class Figure:
    """One line of a plan. `value` None: not known, and `why` names the missing cost; else `why` is its basis."""

    name: str
    label: str
    value: float | None
    unit: str
    why: str


@dataclass(frozen=True)
class Capacity:
    """The processes, memory and network for a load, with advice."""

    demand: Demand
    figures: tuple[Figure, ...]
    advice: tuple[str, ...]

    def value(self, name: str) -> float | None:
        return next(figure.value for figure in self.figures if figure.name == name)


class _Unknown(Exception):
    """A cost that was not measured, by its name."""


def plan(demand: Demand, costs: Costs) -> Capacity:
    """The whole plan. More of anything never needs less of anything."""
    build = _Build(demand, costs)
    figures = (*build.processes(), *build.memory(), *build.network())
    return Capacity(demand, figures, tuple(build.advice()))


def carries(us_per_token: float, us_per_request: float, tokens_per_answer: float, cores: float) -> float:
    """Tokens/s of one process that may use so many cores."""
    us = us_per_token + us_per_request / tokens_per_answer
    return cores * 1e6 / us if us else math.inf


class _Build:
    """One plan in the making."""

    def __init__(self, demand: Demand, costs: Costs) -> None:
        self.demand = demand
        self.costs = costs
        self.num: dict[str, int] = {}  # processes by role, as far as they are known

    def cost(self, name: str) -> float:
        role, _, field = name.partition(".")
        value: float | None = getattr(getattr(self.costs, role), field)
        if value is None:
            raise _Unknown(f"{name} was not measured")
        return value

    def count(self, role: str) -> int:
        if role not in self.num:
            raise _Unknown(f"the number of {role} processes is not known")
        return self.num[role]

    def figure(self, name: str, label: str, unit: str, make: Callable[[], tuple[float, str]]) -> Figure:
        try:
            value, why = make()
        except _Unknown as unknown:
            return Figure(name, label, None, unit, f"not known: {unknown}")
        return Figure(name, label, value, unit, why)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────

    def cores(self, role: str) -> tuple[float, str]:
        """Cores that all processes of a role use together, and by which costs."""
        token, request = self.cost(f"{role}.us_per_token"), self.cost(f"{role}.us_per_request")
        used = (self.demand.tokens_per_s * token + self.demand.requests_per_s * request) / 1e6
        return used, f"{token:.3g} us of CPU a token and {request:.3g} us a request"

    def carries(self, role: str) -> float:
        token, request = self.cost(f"{role}.us_per_token"), self.cost(f"{role}.us_per_request")
        return carries(token, request, self.demand.tokens_per_answer, self.demand.headroom)

    def number(self, role: str) -> tuple[float, str]:
        used, _ = self.cores(role)
        num = max(1, math.ceil(used / self.demand.headroom))
        why = (
            f"{used:.2f} cores, at most {self.demand.headroom:g} of one each: one carries {_tokens(self.carries(role))}"
        )
        if role == "gateway":
            by_connections = math.ceil(self.demand.streams / self.demand.max_connections)
            why += f"; {self.demand.max_connections:,} connections each (--max-connections) would need {by_connections}"
            num = max(num, by_connections)
        self.num[role] = num
        return num, why

    def processes(self) -> list[Figure]:
        # The costs are in the lines of cores, what follows from them in those of processes.
        found = []
        for role, label in (
            ("gateway", "gateway processes"),
            ("worker", "worker processes"),
            ("redis", "Redis servers"),
        ):
            found.append(self.figure(f"{role}_cores", f"CPU, all {label}", "cores", partial(self.cores, role)))
            found.append(self.figure(f"{role}_processes", label, "", partial(self.number, role)))
        if self.demand.cores:
            found.append(self.figure("machines", f"machines of {self.demand.cores} cores", "", self.machines))
        return found

    def machines(self) -> tuple[float, str]:
        num = sum(self.count(role) for role in ("gateway", "worker", "redis"))
        return math.ceil(num / self.demand.cores), f"{num} processes, a core for each, engines not counted"

    # ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────

    def role_memory(self, role: str) -> tuple[float, str]:
        num, base, stream = self.count(role), self.cost(f"{role}.base_mb"), self.cost(f"{role}.kb_per_stream")
        total = num * base + self.demand.streams * stream / 1024
        why = f"{base:.0f} MB each and {stream:.3g} kB for each open stream"
        return total * RSS_MB / MB, why

    def redis_memory(self) -> tuple[float, str]:
        demand = self.demand
        token, request = self.cost("redis.bytes_per_token"), self.cost("redis.bytes_per_request")
        kept = demand.streams + demand.requests_per_s * demand.retention_s
        tokens = kept * demand.tokens_per_answer
        total = self.count("redis") * self.cost("redis.base_mb") * RSS_MB + tokens * token + kept * request
        return total / MB, (
            f"{kept:,.0f} requests kept (the open ones, counted at full length, and those of the last "
            f"{demand.retention_s:g} s), {token:.0f} bytes a token and {request:,.0f} a request, long prompts aside"
        )

    def memory(self) -> list[Figure]:
        return [
            self.figure("redis_memory_mb", "memory, all Redis servers", "MB", self.redis_memory),
            self.figure("gateway_memory_mb", "memory, all gateways", "MB", partial(self.role_memory, "gateway")),
            self.figure("worker_memory_mb", "memory, all workers", "MB", partial(self.role_memory, "worker")),
        ]

    # ── network ──────────────────────────────────────────────────────────────────────────────────────────────────

    def connections(self) -> tuple[float, str]:
        each = {role: self.cost(f"{role}.redis_connections") for role in ("gateway", "worker")}
        total = sum(self.count(role) * num for role, num in each.items())
        return total, f"{each['gateway']:.0f} a gateway process, {each['worker']:.0f} a worker, however many streams"

    def bytes_per_s(self, name: str, words: str) -> tuple[float, str]:
        each = self.cost(name)
        return self.demand.tokens_per_s * each / MB, f"{each:.0f} bytes a token {words}"

    def network(self) -> list[Figure]:
        return [
            self.figure("redis_connections", "connections to Redis", "", self.connections),
            self.figure(
                "client_mb_per_s", "gateways to clients", "MB/s",
                partial(self.bytes_per_s, "client.bytes_per_token", "in one event each, without HTTP, TLS and TCP"),
            ),
            self.figure(
                "redis_in_mb_per_s", "workers to Redis", "MB/s",
                partial(self.bytes_per_s, "redis.in_bytes_per_token", "(one frame each: its log and its channel)"),
            ),
            self.figure(
                "redis_out_mb_per_s", "Redis to gateways", "MB/s",
                partial(self.bytes_per_s, "redis.out_bytes_per_token", "(what is published, and replies to workers)"),
            ),
        ]  # fmt: skip

    # ── advice ───────────────────────────────────────────────────────────────────────────────────────────────────

    def advice(self) -> Sequence[str]:
        demand = self.demand
        found: list[str] = []
        if "redis" in self.num:
            found += self.redis_advice()
        workers = math.ceil(demand.streams / demand.slots)
        if workers > self.num.get("worker", 0):
            found.append(
                f"Slots: {demand.streams:,} streams at once need so many slots. A worker has {demand.slots:,} "
                f"(--max-batches × --max-batch-size): raise these as your engine allows, or run {workers:,} workers."
            )
        found.append(
            "Workers: this is the platform's part. Your engines decide how many there really are, and their CPU, "
            "memory and network come on top."
        )
        return found

    def redis_advice(self) -> Sequence[str]:
        num, most = self.num["redis"], _tokens(self.carries("redis"))
        if num == 1:
            return [f"Redis: one server is enough; of such answers it carries {most}."]
        queue = self.demand.requests_per_s * self.cost("redis.us_per_request") / 1e6
        found = [
            f"Redis: one server carries {most}. Split by model into {num} stacks, each with a Redis, gateways and "
            "workers of its own (--pool names its queue). A pool on the same server takes nothing off it.",
            f"One model alone above {most}: several such stacks behind one load balancer, or a Cluster. A Cluster "
            "shares the logs out by request, but every node still receives each frame that is published: a node's "
            "load falls by less than the number of nodes. That was not measured here.",
        ]
        if queue > self.demand.headroom:
            found.append(
                f"Queues: requests alone take {queue:.2f} cores of Redis, and the queue of a pool is at one node of a "
                "Cluster: there, split into several pools."
            )
        return found


def _tokens(value: float) -> str:
    if value == math.inf:
        return "any number of tokens/s"
    return f"{value / 1000:,.0f}k tokens/s" if value >= 10_000 else f"{value:,.0f} tokens/s"
