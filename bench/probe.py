"""What the processes of a stack use, by role and with their children, and what Redis and the gateway count themselves.

A supervised worker works in a child of the process that was started, and so do several gateway processes: every figure
is of a whole tree. Reads /proc, so it needs Linux. Knows nothing of the load.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.stacks import TICKS, Stack

SETTLE_S = 20.0
_PROCESS_CLOCK = 2  # of clock_getcpuclockid(3): CPU time of a whole process


@dataclass(frozen=True)
class Look:
    """One look at a stack. CPU seconds and memory (kB) by role; `busy_s`: CPU seconds of the machine, all together."""

    at: float
    cpu_s: Mapping[str, float]
    rss_kb: Mapping[str, float]
    busy_s: float
    own_s: float
    num_tokens: int
    num_open: int
    redis: Mapping[str, int]

    def used_s(self, before: Look) -> dict[str, float]:
        return {role: self.cpu_s[role] - before.cpu_s.get(role, 0.0) for role in self.cpu_s}

    def foreign_cores(self, before: Look) -> float:
        """Cores busy with neither the stack nor the load nor this process."""
        used = sum(self.used_s(before).values()) + self.own_s - before.own_s
        return round(max(0.0, (self.busy_s - before.busy_s - used) / (self.at - before.at)), 3)


def look(stack: Stack, *, is_last: bool, generator_pid: int = 0) -> Look:
    """`is_last`: the end of a measurement, so that what asking costs falls outside of it; else its beginning."""
    roles = _roles(stack) | ({"generator": [generator_pid]} if generator_pid else {})
    trees = {role: [one for pid in pids for one in tree(pid)] for role, pids in roles.items()}
    if is_last:
        return _look(stack, trees, _clocks(trees), None)
    counts = _counts(stack)
    return _look(stack, trees, _clocks(trees), counts)


_Clocks = tuple[float, dict[str, float], float, float]
_Counts = tuple[dict[str, int], dict[str, int]]


def _look(stack: Stack, trees: dict[str, list[int]], clocks: _Clocks, counts: _Counts | None) -> Look:
    at, cpu_s, busy_s, own_s = clocks
    gateway, redis = counts or _counts(stack)
    rss_kb = {role: float(sum(map(_rss_kb, pids))) for role, pids in trees.items()}
    return Look(at, cpu_s, rss_kb, busy_s, own_s, gateway["relayed_tokens_total"], gateway["open_streams"], redis)


def _clocks(trees: Mapping[str, list[int]]) -> _Clocks:
    cpu_s = {role: sum(map(_cpu_s, pids)) for role, pids in trees.items()}
    return time.monotonic(), cpu_s, _busy_s(), time.process_time()


def _counts(stack: Stack) -> _Counts:
    return gateway_counts(stack), redis_info(stack)


def _roles(stack: Stack) -> dict[str, list[int]]:
    """Role to the processes that were started for it."""
    assert stack.redis is not None
    found: dict[str, list[int]] = {"redis": [stack.redis.pid]}
    for program in stack.programs:
        found.setdefault(program.command[1], []).append(program.process.pid)
    return found


def tree(pid: int) -> Iterator[int]:
    """A process and all that came from it and live."""
    yield pid
    try:
        children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it, or one of its threads, has ended meanwhile
        return
    for child in " ".join(children).split():
        yield from tree(int(child))


def _cpu_s(pid: int) -> float:
    """In nanoseconds of the scheduler: /proc/<pid>/stat counts in hundredths, too coarse for one stream."""
    try:
        return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)
    except OSError:  # it has ended
        return 0.0


def _rss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def _busy_s() -> float:
    fields = Path("/proc/stat").read_text().split()[1:8]
    return sum(int(value) for at, value in enumerate(fields) if at not in (3, 4)) / TICKS  # not idle, not iowait


def gateway_counts(stack: Stack) -> dict[str, int]:
    """What one gateway process counts, over all models."""
    found = dict.fromkeys(("relayed_tokens_total", "open_streams", "running", "workers_alive"), 0)
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=10.0) as answer:
        for line in answer.read().decode().splitlines():
            name = line.partition(" ")[0].partition("{")[0].removeprefix("penstock_")
            if name in found:
                found[name] += round(float(line.rpartition(" ")[2]))
    return found


def redis_info(stack: Stack) -> dict[str, int]:
    """The whole numbers of INFO, and `num_keys`."""
    assert stack.redis is not None
    with (
        contextlib.closing(socket.create_connection(("127.0.0.1", stack.redis.port), timeout=10.0)) as sock,
        sock.makefile("rb") as file,
    ):
        sock.sendall(b"INFO\r\n")
        text = file.read(int(file.readline()[1:])).decode()
    found = {"num_keys": 0}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.isdigit():
            found[name] = int(value)
        elif name == "db0":
            found["num_keys"] = int(value.partition("keys=")[2].partition(",")[0])
    return found


def redis_connections(stack: Stack) -> dict[str, int]:
    """Connections that each role has to Redis, all its processes together."""
    assert stack.redis is not None
    here = {
        fields[9]
        for fields in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        if int(fields[2].rpartition(":")[2], 16) == stack.redis.port and fields[3] == "01"  # established
    }
    found = {}
    for role, pids in _roles(stack).items():
        if role != "redis":
            found[role] = sum(inode in here for pid in pids for one in tree(pid) for inode in _sockets(one))
    return found


def _sockets(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed between the two
            name = os.readlink(path)
            if name.startswith("socket:["):
                yield name[8:-1]


def settle(stack: Stack, gateways: int, workers: int) -> None:
    """Until every process of the stack is up: workers by their leases, gateways by their connections to Redis."""
    deadline, before = time.monotonic() + SETTLE_S, -1
    while True:
        num = redis_connections(stack)["gateway"]
        alive = gateway_counts(stack)["workers_alive"]
        if alive == workers and num == before and num >= gateways and num % gateways == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"of {workers} workers {alive} are up; the gateways have {num} connections")
        before = num
        time.sleep(0.5)


def drained(stack: Stack, within_s: float) -> bool:
    """Whether Redis has forgotten earlier answers; waits for it so long. Else its memory says nothing of new ones."""
    deadline = time.monotonic() + within_s
    while redis_info(stack)["num_keys"] > 24:  # what remains are leases, lists of workers, and the like
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.25)
    return True
