"""The plant: one real server, gateways and workers as processes of their own, each ended by its own pid.

Their output goes to files in one directory, which is kept when something breaks. Knows nothing of load or books.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos.http import Cut, get
from tests.chaos.proxy import Proxy
from tests.support import servers

READY_S = 30.0
STOP_S = 20.0
QUEUE = "inference:queue"


def own_port() -> int:
    """A free port that no outgoing connection will take while its owner is away for a moment."""
    while True:
        port = random.SystemRandom().randint(15_000, 30_000)  # below what systems use for outgoing connections
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Member:
    """One `penstock worker` or `penstock gateway`. `is_read`: its output goes to a file; else to a full pipe, one that
    is never read.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        args: Sequence[str],
        env: Mapping[str, str],
        directory: Path,
        *,
        is_read: bool = True,
    ) -> None:
        self.kind, self.name = kind, name
        port = own_port()
        self.url = f"http://127.0.0.1:{port}"
        flag = "--port" if kind == "gateway" else "--metrics-port"
        self.log = directory / f"{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
        self._unread: int | None = None
        with self.log.open("wb") as file:
            out = file.fileno()
            if not is_read:
                self._unread, out = os.pipe()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock", kind, flag, str(port), *args],
                env={**clean, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            if not is_read:
                os.close(out)
        self.is_survivor = True
        self.is_ready = False
        self.was_killed = False
        self.was_touched = False  # a signal was sent to it
        self.before: tuple[int, int] = (0, 0)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def pids(self) -> list[int]:
        """The process and its children, if it supervises any."""
        pid = self.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            children = []
        return [pid, *map(int, children)]

    def signal(self, number: int) -> None:
        """To the process that works: the child, where there is a supervisor. For SIGSTOP, SIGCONT, SIGKILL."""
        self.was_touched = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids()[-1], number)

    def kill(self) -> None:
        """SIGKILL, the supervisor with it, so that no process is left to report it."""
        self.is_survivor = False
        self.was_killed = self.was_touched = True
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def ended(self, timeout_s: float = STOP_S) -> int:
        """Its exit status. `AssertionError` if it does not end."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive:
            assert time.monotonic() < deadline, f"{self.name} does not end"
            await asyncio.sleep(0.01)
        return self.process.returncode

    def let_go(self) -> None:
        """Close the end of the pipe that is never read."""
        if self._unread is not None:
            os.close(self._unread)
            self._unread = None

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.is_survivor = False
        self.was_touched = True
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ready(self, path: str = "/readyz") -> None:
        deadline = time.monotonic() + READY_S
        last = "nothing"
        while time.monotonic() < deadline:
            if not self.is_survivor:
                return  # ended on purpose before it was ready
            assert self.is_alive, f"{self.name} ended with {self.process.returncode} instead of getting ready"
            try:
                status, body = await get(self.url, path)
                last = f"{status} {body[:200]!r}"
                if status == 200:
                    self.is_ready = True
                    return
            except Cut as cut:
                last = str(cut)
            await asyncio.sleep(0.03)
        raise AssertionError(f"{self.name} is not ready after {READY_S} s: {last}")

    def use(self) -> tuple[int, int]:
        """Open descriptors and resident KiB of the process that works."""
        pid = self.pids()[-1]
        num = len(os.listdir(f"/proc/{pid}/fd"))
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return num, rss

    def state(self) -> str:
        """The kernel's letter for it: R, S, T (stopped), …"""
        return Path(f"/proc/{self.pids()[-1]}/stat").read_text().rpartition(")")[2].split()[0]

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class Plant:
    """`gateways` and `workers` are those that are meant to be there; `members` all that ever were."""

    def __init__(self, directory: Path, server: str | None = None) -> None:
        self.directory = directory
        self.server_name = server or next(iter(servers.find_servers()))
        self.port = own_port()
        self._options: tuple[str, ...] = ()
        self.server = self._serve()
        self.proxy: Proxy | None = None
        self.members: list[Member] = []
        self.gateways: list[Member] = []
        self.workers: list[Member] = []
        self.worker_args: Sequence[str] = ()
        self.gateway_args: Sequence[str] = ()
        self._client = Redis(port=self.port, decode_responses=True, socket_timeout=10, protocol=2)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────

    async def interpose(self) -> Proxy:
        """From here on, members that start reach the server through a proxy."""
        self.proxy = Proxy(self.port)
        await self.proxy.start()
        return self.proxy

    def add(self, kind: str, *args: str, env: Mapping[str, str] | None = None, is_read: bool = True) -> Member:
        """Start one; it is not ready yet."""
        peers = self.gateways if kind == "gateway" else self.workers
        own = self.gateway_args if kind == "gateway" else self.worker_args
        number = sum(member.kind == kind for member in self.members) + 1
        port = self.proxy.port if self.proxy is not None else self.port
        store = ["--redis-url", f"redis://127.0.0.1:{port}"]
        member = Member(kind, f"{kind}-{number}", [*store, *own, *args], env or {}, self.directory, is_read=is_read)
        self.members.append(member)
        peers.append(member)
        return member

    async def fill(self, workers: int, gateways: int) -> None:
        """Start so many at once, and wait until they are ready; workers first, as a gateway is ready when one is."""
        new = [self.add("worker") for _ in range(workers)] + [self.add("gateway") for _ in range(gateways)]
        await asyncio.gather(*(member.ready() for member in new))

    async def replace(self, member: Member) -> Member:
        """Another one in the place of a dead one; returns when it is ready."""
        self.forget(member)
        new = self.add(member.kind)
        await new.ready("/livez")
        return new

    def forget(self, member: Member) -> None:
        """It no longer belongs to those that are meant to be there."""
        for peers in (self.gateways, self.workers):
            if member in peers:
                peers.remove(member)

    async def close(self) -> None:
        for member in self.members:
            if member.is_alive:
                for pid in member.pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                member.process.terminate()
        for member in self.members:
            try:
                await member.ended(5.0)
            except AssertionError:
                member.kill()
                member.process.wait()
            member.let_go()
        await self._client.aclose()
        if self.proxy is not None:
            await self.proxy.close()
        self.server.stop()

    # ── the server ───────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self, directory: tempfile.TemporaryDirectory[str] | None = None) -> servers.Server:
        log = "--logfile", str(self.directory / "server.log")
        return servers.start_server(self.server_name, *log, *self._options, port=self.port, directory=directory)

    async def crash_server(self, away_s: float) -> None:
        """kill -9, and another one, empty, on the same port."""
        self.server.stop()
        await asyncio.sleep(away_s)
        self.server = await asyncio.to_thread(self._serve)

    async def keep_log(self) -> None:
        """From here on the server has an append-only file. To be called before anything is in it."""
        self.server.stop()
        self._options = ("--appendonly", "yes", "--appendfsync", "everysec")
        self.server = await asyncio.to_thread(self._serve)

    async def cut_back(self, lost_s: float, away_s: float) -> None:
        """kill -9, and the same server again without what it had written in the last `lost_s`."""
        sizes = self.server.log_sizes()
        await asyncio.sleep(lost_s)
        before = self.server
        before.kill()
        before.cut_back(sizes)
        await asyncio.sleep(away_s)
        self.server = await asyncio.to_thread(self._serve, before.directory)

    async def stop_server(self, for_s: float) -> None:
        """SIGSTOP: it holds every connection and answers none."""
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            os.kill(self.server.pid, signal.SIGCONT)

    async def ask(self, *words: Any) -> Any:
        """A command of the operator's; `RedisError` if the server is away."""
        for attempt in range(20):
            try:
                return await self._client.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py's own
            except (RedisError, OSError):
                await self._client.connection_pool.disconnect()
                if attempt == 19:
                    raise
                await asyncio.sleep(0.1)
        raise AssertionError("unreachable")

    async def keys(self, pattern: str = "*") -> list[str]:
        found: list[str] = []
        cursor: Any = "0"
        while True:
            cursor, page = await self.ask("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            found += page
            if int(cursor) == 0:
                return sorted(set(found))

    async def held(self) -> dict[str, list[str]]:
        """What is in the workers' lists."""
        lists = {}
        for key in await self.keys(f"*{QUEUE}}}:worker:*"):
            ids = await self.ask("LRANGE", key, 0, -1)
            if ids:
                lists[key.rpartition(":")[2]] = ids
        return lists

    def keep(self, target: Path) -> None:
        """Copy all logs to `target`."""
        shutil.copytree(self.directory, target, dirs_exist_ok=True)
