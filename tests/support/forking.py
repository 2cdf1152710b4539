"""Starts `penstock` processes quickly: one process imports Penstock once and forks for each of them.

A start costs 0.3 s of CPU this way, and 1.7 s with the imports. What a test sees is a process of its own in every other
respect: pid, environment, standard streams, signals, exit status. Processes share the seed of `hash()` and what imports
leave in memory; `make chaos`, children of a supervisor, and each `Program(python=…)` start the usual way.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ENDS_WITHIN_S = 30.0
MODULES = (
    "penstock.cli.app",
    "penstock.cli.processes",
    "penstock.processes.gateway",
    "penstock.processes.serve",
    "penstock.processes.stand_in",
    "penstock.processes.worker",
    "penstock.processes.worker_parent",
    "penstock.transports.memory",
    "penstock.transports.redis",
    "pydantic.v1",  # of FastAPI, at the first route
)


class Forked:
    """A forked `penstock`, used as a `subprocess.Popen` would be."""

    def __init__(self, pid: int, args: Sequence[str], ended: int) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def _look(self, timeout_s: float | None) -> int | None:
        """The status, once the process that forked it has reaped it and written the status to the pipe."""
        if self.returncode is None and select.select([self._ended], [], [], timeout_s)[0]:
            said = os.read(self._ended, 64)
            os.close(self._ended)
            assert said, "the process that forks has died"
            self.returncode = int(said)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(args: Sequence[str], env: Mapping[str, str], stdin: int, stdout: int, stderr: int) -> Forked:
    """`python -m penstock ARGS` in the working directory of the tests, with this environment and no other."""
    sock = _forker()
    ended, reports = os.pipe()
    with tempfile.TemporaryFile() as request:
        request.write(json.dumps([list(args), dict(env)]).encode())
        request.flush()
        socket.send_fds(sock, [b"+"], [request.fileno(), reports, stdin, stdout, stderr])
        os.close(reports)
        said = sock.recv(64)
    assert said, "the process that forks has died"
    return Forked(int(said), args, ended)


@functools.cache
def _forker() -> socket.socket:
    ours, theirs = socket.socketpair()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    command = [sys.executable, "-m", "tests.support.forking", str(theirs.fileno())]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=clean, cwd=root, stdin=subprocess.DEVNULL)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(ENDS_WITHIN_S)

    atexit.register(end)
    return ours


# ── in the process that forks ────────────────────────────────────────────────────────────────────────────────────────


def _serve(sock: socket.socket) -> list[str] | None:
    """Fork for each request. Returns None at the end, and in each child the arguments of its command."""
    reports: dict[int, int] = {}
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_in, False)
    os.set_blocking(wake_out, False)
    signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end their processes
    while True:
        readable, _, _ = select.select([sock.fileno(), wake_in], [], [])
        if wake_in in readable:
            os.read(wake_in, 4096)
            _reap(reports)
        if sock.fileno() not in readable:
            continue
        _, fds, _, _ = socket.recv_fds(sock, 1, 5)
        if not fds:  # the tests have ended, or were broken off: what they left running ends, too
            for left in reports:
                os.kill(left, signal.SIGTERM)
            return None
        request, report, *streams = fds
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, interrupt)
            for fd in (wake_in, wake_out, report, *reports.values()):
                os.close(fd)
            sock.close()
            return _become(request, streams)
        reports[pid] = report
        for fd in (request, *streams):
            os.close(fd)
        sock.send(str(pid).encode())


def _reap(reports: dict[int, int]) -> None:
    for pid in list(reports):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            report = reports.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # the test no longer asks
                os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(report)


def _become(request: int, streams: Sequence[int]) -> list[str]:
    """Take the streams and the environment of a request; returns its arguments."""
    with open(request, "rb") as file:
        file.seek(0)
        args, env = json.load(file)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - they stay open
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    return [str(arg) for arg in args]


def main() -> NoReturn:
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # what is imported stays: no collection of a child looks at it again
    args = _serve(socket.socket(fileno=int(sys.argv[1])))
    if args is None:
        sys.exit(0)
    sys.argv = ["penstock", *args]
    importlib.import_module("penstock.cli").main()
    sys.exit(0)


if __name__ == "__main__":
    main()
