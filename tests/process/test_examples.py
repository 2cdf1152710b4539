"""Every example runs as its first lines say, and `penstock chat` talks."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import Site, site
from tests.support.servers import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with site() as built:
        built.serve("--model", "mock=mock:step_ms=5,ends=length")
        yield built


def _run(*args: str, env: dict[str, str] | None = None, input: str | None = None) -> str:
    done = subprocess.run(
        args, capture_output=True, text=True, timeout=90, cwd=ROOT, env=os.environ | (env or {}), input=input
    )
    assert done.returncode == 0, f"{args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _python(name: str, *args: str) -> str:
    return _run(sys.executable, f"examples/{name}", *args)


def _chat(server: Site, *args: str, input: str) -> str:
    return _run(sys.executable, "-m", "penstock", "chat", "--url", server.gateways[0], *args, input=input)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Site) -> None:
    said = _run("sh", "examples/curl.sh", env={"URL": server.gateways[0]})
    assert said.count("event: done") == 1
    assert '"state":"completed"' in said
    assert '"state":"cancelled"' in said
    assert said.count('"object":"chat.completion"') == 1
    taken_up = said.partition("from the third on\n")[2]
    assert '"index":2' in taken_up.partition("──")[0]
    assert '"index":1,' not in taken_up.partition("──")[0]


def test_fan_out(server: Site) -> None:
    assert "100 answers" in _python("fan_out.py", "--url", server.gateways[0])


def test_resume_without_redis_ends_with_one_sentence() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "examples/resume.py", "--redis-url", url], capture_output=True, text=True, cwd=ROOT, timeout=90
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"No usable Redis at {url}: ")
    assert done.stderr.count("\n") == 1


def test_background(server: Site) -> None:
    lines = _python("background.py", "--url", server.gateways[0]).splitlines()
    assert lines[0].startswith("submitted ")
    assert lines[-1].startswith("completed: ")


def test_openai_client(server: Site) -> None:
    assert _python("openai_client.py", "--url", f"{server.gateways[0]}/v1").endswith("\n16 tokens\n")


def test_resume(redis_url: str) -> None:
    said = _python("resume.py", "--redis-url", redis_url)
    assert "the gateway is killed" in said
    assert said.endswith("── 100 tokens; the stream was taken up 1 times ──\n")


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    names = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh")}
    elsewhere = {"echo_backend.py"}  # tests/contract/test_backend.py
    assert sorted(name for name in names - elsewhere if f"{name}" not in here) == []


# ── penstock chat ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_from_a_pipe_remembers_and_forgets(server: Site) -> None:
    first, second, again = _chat(server, "--max-tokens", "4", input="hello\nand then?\n/reset\nhello\n").splitlines()
    assert first == again
    assert first != second
    told = _chat(server, "--max-tokens", "4", input="/system Be brief.\nhello\n/exit\nhello\n").splitlines()
    assert len(told) == 1
    assert told != [first]


def test_a_chat_prints_an_error_and_continues(server: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "chat", "--url", server.gateways[0], "--model", "none"],
        input="hello\n/model mock\nhello\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "penstock: Unknown model 'none'" in done.stderr
    assert len(done.stdout.splitlines()) == 1


async def test_ctrl_c_stops_the_answer_and_not_the_chat(server: Site) -> None:
    """On a terminal of its own: an answer is stopped by Ctrl-C, cancelled at the server, and the next is asked."""
    process, master = on_a_terminal("chat", "--url", server.gateways[0], "--max-tokens", "5000")
    seen = bytearray()

    def shows(text: bytes, num: int = 1) -> bool:
        try:
            seen.extend(os.read(master, 65536))
        except (BlockingIOError, OSError):  # nothing at present; or the terminal has closed
            pass
        return seen.count(text) >= num

    try:
        await wait_until(lambda: shows(b"> "), "it asks")
        os.write(master, b"hello\n")
        await wait_until(lambda: shows(b" ") and len(seen) > 300, "it answers")
        os.write(master, b"\x03")
        await wait_until(lambda: shows(b"(stopped)"), "the answer is stopped")
        await wait_until(lambda: shows(b"> "), "it asks again")
        os.write(master, b"/exit\n")
        await wait_until(lambda: shows(b"") and process.poll() is not None, "it leaves")
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)


def _take_the_terminal() -> None:
    """So that Ctrl-C in it is a signal, also where the tests run in the background of a shell, which ignores it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_a_terminal(*args: str) -> tuple[subprocess.Popen[bytes], int]:
    """A penstock command whose controlling terminal is the other end of the file descriptor."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *args],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=_take_the_terminal,
    )
    os.close(slave)
    os.set_blocking(master, False)
    return process, master
