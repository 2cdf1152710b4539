"""The systems that are compared, as real processes on free ports of this machine; each ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from tests.support.servers import Server, free_port, start_server

READY_S = 20.0
STOP_S = 10.0
TICKS = os.sysconf("SC_CLK_TCK")

# As a user would set them who knows the load: room for every stream of the largest cell, and for as many batches as
# arrivals begin while one batch runs. The other settings are the defaults: log, leases, limits, metrics, JSON logs.
WORKER = ["--max-batches", "64", "--max-batch-size", "256"]
GATEWAY = ["--max-queue-depth", "10000"]
WINDOW_MS = 10.0
SLOW = "slow=mock:step_ms=250"  # for streams that are to stay open


class Program:
    """One process and what it wrote. `tree`: run the code of another checkout."""

    def __init__(self, *command: str, tree: Path | None = None) -> None:
        self.command = command
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        self.launched_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=clean if tree is None else {**clean, "PYTHONPATH": str(tree)},
            cwd=tree,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def output(self) -> str:
        fd = self.log.fileno()  # its position is the program's, too: reading must not move it
        return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")[-4000:]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class Stack:
    """One system: its processes, its Redis if it has one, and where it answers."""

    def __init__(self, name: str, port: int, programs: Sequence[Program], redis: Server | None) -> None:
        self.name = name
        self.port = port
        self.programs = programs
        self.redis = redis
        self.launched_at = min(program.launched_at for program in programs)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> dict[str, int]:
        found = {_role(program): program.process.pid for program in self.programs}
        return {**found, **({"redis": self.redis.pid} if self.redis else {})}

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        return sum(self.cpu_s_each().values())

    def cpu_s_each(self) -> dict[str, float]:
        return {name: _cpu_s(pid) for name, pid in self.pids.items()}

    def rss_mb(self) -> dict[str, float]:
        return {name: _rss_kb(pid) / 1024 for name, pid in self.pids.items()}

    def redis_connections(self) -> int:
        """Clients that Redis sees, without the one that asks."""
        assert self.redis is not None
        with socket.create_connection(("127.0.0.1", self.redis.port), timeout=5.0) as sock:
            sock.sendall(b"INFO clients\r\n")
            text = sock.recv(65536).decode()
        line = next(line for line in text.splitlines() if line.startswith("connected_clients:"))
        return int(line.partition(":")[2]) - 1

    def open_streams(self) -> int:
        """As the gateway's metrics say."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5.0) as answer:
            lines = answer.read().decode().splitlines()
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("penstock_open_streams"))

    def answer(self) -> int:
        """The status of one small request; 0 if no program listens."""
        body = b'{"prompt": "Hello", "max_tokens": 1}'
        lines = ["POST /v1/generate HTTP/1.1", "host: localhost", "content-type: application/json", "connection: close"]
        head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=READY_S) as sock:
                sock.sendall(head.encode() + body)
                data = sock.recv(4096)
        except OSError:
            return 0
        return int(data[9:12]) if len(data) > 12 else 0

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while self.answer() != 200:
            for program in self.programs:
                if program.process.poll() is not None:
                    raise RuntimeError(f"{self.name}: {program.command} ended:\n{program.output()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: no answer:\n" + "\n".join(one.output() for one in self.programs))
            time.sleep(0.005)

    def stop(self) -> None:
        for program in self.programs:
            program.stop()
        if self.redis is not None:
            self.redis.stop()


def _role(program: Program) -> str:
    words = [word for word in program.command[:2] if not word.startswith("-")]
    return words[-1].rpartition(".")[2]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def launch(name: str, step_ms: float, tree: Path | None = None) -> Stack:
    """Start a system without waiting for it. `tree`: `penstock`, `defaults` or `embedded` from another checkout."""
    port = free_port()
    model = ["--model", f"mock=mock:step_ms={step_ms:g}"]
    if name == "bare":
        return Stack(name, port, [Program("bench.baselines.bare", f"--port={port}", f"--step-ms={step_ms:g}")], None)
    if name == "embedded":
        serve = Program("penstock", "serve", f"--port={port}", *model, *WORKER, *GATEWAY, tree=tree)
        return Stack(name, port, [serve], None)
    redis = start_server()
    store = ["--redis-url", redis.url]
    if name in ("penstock", "defaults"):
        more = [*model, "--model", SLOW, *(WORKER if name == "penstock" else [])]
        programs = [
            Program("penstock", "gateway", f"--port={port}", *store, *GATEWAY, tree=tree),
            # Its parent would be a fourth process, and the one that is measured; it does nothing while nothing dies.
            Program("penstock", "worker", "--no-supervised", "--metrics-port=0", *store, *more, tree=tree),
        ]
    elif name == "naive":
        programs = [
            Program("bench.baselines.naive", "gateway", f"--port={port}", *store),
            Program("bench.baselines.naive", "worker", f"--step-ms={step_ms:g}", *store),
        ]
    else:
        raise ValueError(f"no system is called {name!r}")
    return Stack(name, port, programs, redis)


@contextlib.contextmanager
def running(names: Sequence[str], step_ms: float) -> Iterator[dict[str, Stack]]:
    """These systems, all answering."""
    stacks: dict[str, Stack] = {}
    try:
        for name in names:
            stacks[name] = launch(name, step_ms)
        for stack in stacks.values():
            stack.wait_ready()
        yield stacks
    finally:
        for stack in stacks.values():
            stack.stop()
