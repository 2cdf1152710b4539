"""Processes whose stderr is not read, or whose reader has gone: they serve, they end, they say what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support import reading
from tests.support.programs import READY_S, Program, Site, site
from tests.support.servers import free_port
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(120)

SLOW = "mock=mock:step_ms=20"


class Pipe:
    """A pipe that is full and that nothing reads."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4096)
        os.write(self.write_end, b"." * 4095 + b"\n")


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.read_end)
    os.close(made.write_end)


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with reading.client() as client:
        yield client


def _start(fleet: Site, stderr: int, command: str, *args: str) -> str:
    """A program whose stderr is that; its URL, once it serves."""
    port = free_port()
    flag = "--metrics-port" if command == "worker" else "--port"
    store = ["--redis-url", fleet.redis_url] if fleet.redis_url else []
    program = Program(command, *store, flag, str(port), "--log-level", "debug", *args, stderr=stderr)
    fleet.programs.append(program)
    program.wait_for(f"http://127.0.0.1:{port}/livez")
    return f"http://127.0.0.1:{port}"


async def _answer(http: httpx2.AsyncClient, url: str, max_tokens: int = 2) -> None:
    body = {"prompt": "x", "max_tokens": max_tokens}
    answer = await http.post(f"{url}/v1/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


async def _end_by_sigterm(program: Program) -> int:
    program.signal(signal.SIGTERM)
    return await asyncio.to_thread(program.wait, 30)


@pytest.mark.parametrize("kind", ["alone", "parents"])
async def test_a_full_stderr_stops_nothing(redis_url: str, http: httpx2.AsyncClient, pipe: Pipe, kind: str) -> None:
    with site(redis_url) as fleet:
        many = kind == "parents"
        _start(fleet, pipe.write_end, "worker", "--model", SLOW, *([] if many else ["--no-supervised"]))
        url = _start(fleet, pipe.write_end, "gateway", *(["--processes", "2"] if many else []))
        worker, gateway = fleet.programs
        await asyncio.gather(*(_answer(http, url) for _ in range(100)))
        if many:  # the parents have something to say, too
            for parent in (worker, gateway):
                children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
                before = children.read_text().split()
                os.kill(int(before[0]), signal.SIGKILL)
                await wait_until(lambda: len(set(children.read_text().split()) - set(before)) == 1, "a new child")  # noqa: B023
            await wait_until_async(lambda: _is_ready(http, url), "it is ready again")
        await asyncio.gather(*(_answer(http, url) for _ in range(20)))
        assert await _end_by_sigterm(gateway) == 0
        assert await _end_by_sigterm(worker) == 0


async def _is_ready(http: httpx2.AsyncClient, url: str) -> bool:
    return (await http.get(f"{url}/readyz")).status_code == 200


async def test_dropped_lines_are_counted_and_reported(http: httpx2.AsyncClient, tmp_path: Path) -> None:
    """A named pipe whose reader leaves and comes back."""
    name = tmp_path / "log"
    os.mkfifo(name)
    read_end = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    write_end = os.open(name, os.O_WRONLY)
    with site() as fleet:
        url = _start(fleet, write_end, "serve")
        os.close(write_end)
        os.close(read_end)
        await asyncio.gather(*(_answer(http, url) for _ in range(20)))
        num_lost = 0.0

        async def are_lost() -> bool:  # counted when they are written, which is not at once
            nonlocal num_lost
            num_lost = reading.metric((await http.get(f"{url}/metrics")).text, "penstock_log_lines_dropped_total")
            return num_lost >= 20

        await wait_until_async(are_lost, "a line of each request is lost")
        read_end = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        await _answer(http, url)
        heard = b""

        def is_said() -> bool:
            nonlocal heard
            with contextlib.suppress(BlockingIOError):
                heard += os.read(read_end, 65536)
            return b"dropped" in heard and heard.endswith(b"\n")

        await wait_until(is_said, "it is said")
        lines = [json.loads(line) for line in heard.splitlines()]
        (said,) = [line for line in lines if line["message"] == "log lines were dropped, as stderr took none"]
        assert said["level"] == "warning"
        assert said["lines"] >= num_lost
        assert len(lines) > 1, "the line that came through stands there, too"
        assert await _end_by_sigterm(fleet.programs[0]) == 0
    os.close(read_end)


async def test_the_child_dies_with_its_parent_although_stderr_is_full(redis_url: str, pipe: Pipe) -> None:
    with site(redis_url) as fleet:
        _start(fleet, pipe.write_end, "worker")
        parent = fleet.programs[0]
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.signal(signal.SIGKILL)
        parent.wait()

        def is_gone() -> bool:
            try:
                return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except (FileNotFoundError, ProcessLookupError):
                return True

        await wait_until(is_gone, "the child is gone")


async def test_a_refusal_and_a_crash_end_the_process_although_stderr_is_full(pipe: Pipe) -> None:
    wrong = Program("serve", "--port", "0", "--model", "mock=mock:no_such_option=1", stderr=pipe.write_end)
    assert await asyncio.to_thread(wrong.wait, 30) == 2
    wrong.close()
    crash = 'from penstock.logs import configure; configure(); raise RuntimeError("first\\nsecond")'
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", crash, stderr=pipe.write_end)
    assert await asyncio.wait_for(process.wait(), 30) == 1
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", crash, stderr=subprocess.PIPE)
    (line,) = (await process.communicate())[1].decode().splitlines()
    assert "RuntimeError: first\nsecond" in json.loads(line)["exception"]
    assert process.returncode == 1


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize("command", ["worker", "gateway", "gateway --processes 2"])
async def test_closed_standard_streams(redis_url: str, http: httpx2.AsyncClient, command: str, closed: str) -> None:
    """Else a socket gets the number of one of them, and libuv aborts on it."""
    with site(redis_url) as fleet:
        port = free_port()
        flag = "--metrics-port" if command == "worker" else "--port"
        penstock = f'exec "{sys.executable}" -m penstock {command} --redis-url {redis_url} {flag} {port} {closed}'
        process = await asyncio.create_subprocess_exec("sh", "-c", penstock)
        try:
            if command != "worker":
                fleet.worker()
            url = f"http://127.0.0.1:{port}"

            async def is_ready() -> bool:
                assert process.returncode is None
                with contextlib.suppress(httpx2.TransportError):
                    return await _is_ready(http, url)
                return False

            await wait_until_async(is_ready, "it is ready", READY_S)
            if command != "worker":
                await _answer(http, url)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
