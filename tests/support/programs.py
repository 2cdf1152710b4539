"""Real processes for the tests: `python -m penstock …` on free ports, each ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.forking import Forked, fork
from tests.support.servers import free_port

READY_S = 60.0  # on a machine that is busy with other things
RAW_HOST = "x"  # what tests that write their requests by hand send as Host


def status_of(url: str, timeout_s: float = 2.0) -> int:
    """The status that a GET gets. By hand: a client of httpx2 costs 40 ms of CPU, and a loop that waits needs many."""
    _, _, place = url.partition("://")
    host, _, path = place.partition("/")
    name, _, port = host.rpartition(":")
    with socket.create_connection((name, int(port)), timeout_s) as sock:
        sock.sendall(f"GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        line = sock.makefile("rb").readline()
    if not line:
        raise ConnectionResetError("closed without an answer")
    return int(line.split()[1])


class Program:
    """One running `penstock` command; its output is kept for the report of a failing test."""

    def __init__(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stderr: int = subprocess.STDOUT,
        python: Sequence[str] = (),
    ) -> None:
        self.args = args
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
        whole = {**clean, "PENSTOCK_ALLOWED_HOSTS": RAW_HOST, **(env or {})}
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        self.process: subprocess.Popen[bytes] | Forked
        if python or cwd or any(name.startswith("PYTHON") for name in env or ()):
            command = [sys.executable, *python, "-m", "penstock", *args]
            self.process = subprocess.Popen(
                command, env=whole, cwd=cwd, stdin=subprocess.DEVNULL, stdout=self.log, stderr=stderr
            )
        else:
            with open(os.devnull, "rb") as nothing:
                log = self.log.fileno()
                self.process = fork(args, whole, nothing.fileno(), log, log if stderr == subprocess.STDOUT else stderr)

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """Without moving the file's position, which the program shares: it would write over what it has written."""
        fd = self.log.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 15.0) -> int:
        return self.process.wait(timeout_s)

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and SIGKILL if that is not enough; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.wait()

    def close(self) -> None:
        """Stop it and let go of its output."""
        self.stop()
        self.log.close()

    def wait_for(self, url: str, status: int = 200, timeout_s: float = READY_S) -> None:
        """Until `url` answers `status`; fails with the program's output if it does not or the program has ended."""
        deadline = time.monotonic() + timeout_s
        last: object = "no answer"
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"{self.args} ended with {self.process.returncode}:\n{self.output()}"
            try:
                last = status_of(url)
                if last == status:
                    return
            except (OSError, ValueError) as error:
                last = error
            time.sleep(0.02)  # polling with a deadline; there is nothing to wait on in another process
        raise AssertionError(f"{url} gave {last} and not {status} within {timeout_s} s:\n{self.output()}")


class Command:
    """One `penstock` command that ends by itself, such as `ps`. `args` and `env` as of a `Program`."""

    def __init__(self, *args: str, env: Mapping[str, str] | None = None, input: str = "") -> None:
        self.args = args
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
        self._files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115 - closed in `done`
        self._files[0].write(input.encode())
        self._files[0].seek(0)
        self.process = fork(args, {**clean, **(env or {})}, *(file.fileno() for file in self._files))

    def done(self, timeout_s: float = READY_S) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what it has printed."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        printed = []
        for file in self._files:
            file.seek(0)
            printed.append(file.read().decode())
            file.close()
        return subprocess.CompletedProcess(self.args, status, printed[1], printed[2])


class Site:
    """A set of programs that belong together, over one store or none."""

    def __init__(self, redis_url: str | None = None) -> None:
        self.redis_url = redis_url
        self.programs: list[Program] = []
        self.gateways: list[str] = []
        self.workers: list[str] = []

    def _start(self, command: str, *args: str, env: Mapping[str, str] | None = None) -> Program:
        store = ["--redis-url", self.redis_url] if self.redis_url else []
        program = Program(command, *store, *args, env=env)
        self.programs.append(program)
        return program

    def serve(self, *args: str, env: Mapping[str, str] | None = None) -> Program:
        port = free_port()
        program = self._start("serve", "--port", str(port), *args, env=env)
        self.gateways.append(f"http://127.0.0.1:{port}")
        program.wait_for(f"{self.gateways[-1]}/readyz")
        return program

    def gateway(self, *args: str, env: Mapping[str, str] | None = None, is_ready: bool = True, at: str = "") -> Program:
        """`at`: the URL of one that has died, to stand in its place."""
        url = at or f"http://127.0.0.1:{free_port()}"
        program = self._start("gateway", "--port", url.rpartition(":")[2], *args, env=env)
        if not at:
            self.gateways.append(url)
        program.wait_for(f"{url}/{'readyz' if is_ready else 'livez'}")
        return program

    def worker(self, *args: str, env: Mapping[str, str] | None = None) -> Program:
        """Not supervised unless asked: then the program's pid is the worker's own."""
        port = free_port()
        alone = () if "--supervised" in args else ("--no-supervised",)
        program = self._start("worker", "--metrics-port", str(port), *alone, *args, env=env)
        self.workers.append(f"http://127.0.0.1:{port}")
        program.wait_for(f"{self.workers[-1]}/readyz")
        return program

    def stop(self) -> None:
        for program in reversed(self.programs):
            program.close()


@contextlib.contextmanager
def site(redis_url: str | None = None) -> Iterator[Site]:
    """A `Site` whose programs are ended at the end, and whose output is shown if the test failed."""
    built = Site(redis_url)
    try:
        yield built
    except BaseException:
        for program in built.programs:
            print(f"── {' '.join(program.args)} (pid {program.pid})\n{program.output()[-4000:]}")  # noqa: T201
        raise
    finally:
        built.stop()


def altered(name: str) -> str:
    """A key or an id that a site does not have: `name` with another last character."""
    return name[:-1] + ("1" if name[-1] == "0" else "0")
