"""Lines to descriptors whose readers stop, leave and come back; and descriptors that were closed from the start."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from penstock.stdio import LineWriter
from tests.support.waiting import wait_until


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page, so that it is soon full: what reads, what writes."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    yield read_end, write_end
    for fd in (read_end, write_end):
        try:
            os.close(fd)
        except OSError:
            pass  # the test has closed it


def _lines(first: int, num: int) -> list[str]:
    return [f"{number:05d} {'x' * 93}\n" for number in range(first, first + num)]


class Reader:
    """Reads all there is until the other end is closed, in a thread."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.data = b""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while data := os.read(self.fd, 65536):
            self.data += data

    @property
    def lines(self) -> list[str]:
        return self.data.decode().splitlines(keepends=True)


async def test_lines_come_out_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = Reader(pipe[0]), LineWriter(pipe[1])
    put = [*_lines(0, 500), f"{'long' * 5000}\n", "two\nlines\n", "\ud800\n"]
    for line in put:
        writer.put(line)
    assert writer.flush(timeout_s=20)
    await wait_until(lambda: reader.data.endswith(b"\\ud800\n"), "all of it was read")
    assert reader.data.decode() == "".join(put[:-1]) + "\\ud800\n"
    assert writer.num_dropped == 0


async def test_a_flush_does_not_wait_for_the_pause(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.stdio.PAUSE_S", 3600.0)
    reader, writer = Reader(pipe[0]), LineWriter(pipe[1])
    for number in range(3):
        writer.put(f"{number}\n")
        assert writer.flush(timeout_s=20)
    await wait_until(lambda: reader.data == b"0\n1\n2\n", "all of it was read")
    await wait_until(lambda: not writer._hurry.is_set(), "it is not in a hurry any more")


async def test_a_reader_that_does_not_read_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], max_bytes=10_000)
    writer.describe = lambda num: f"dropped {num}\n"
    put = _lines(0, 1000)
    for line in put:
        writer.put(line)  # the time limit of the test is what shows that it does not wait
    assert not writer.flush(timeout_s=0.01)
    assert 850 <= writer.num_dropped <= 950
    reader = Reader(pipe[0])
    assert writer.flush(timeout_s=20)
    await wait_until(lambda: b"dropped" in reader.data and reader.data.endswith(b"\n"), "the last line was read")
    *before, note = reader.lines
    assert note == f"dropped {writer.num_dropped}\n"
    assert set(before) <= set(put)
    assert before[: len(before) // 2] == put[: len(before) // 2], "the oldest are kept"
    assert len(before) + writer.num_dropped == len(put)
    writer.put("after\n")
    assert writer.flush(timeout_s=20)
    await wait_until(lambda: reader.lines[-1] == "after\n", "what follows is written")
    assert len([line for line in reader.lines if line.startswith("dropped")]) == 1, "one line says it"


async def test_a_reader_that_has_gone_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    os.close(read_end)
    writer = LineWriter(write_end)
    writer.describe = lambda num: f"dropped {num}\n"
    for line in _lines(0, 10):
        writer.put(line)
    assert writer.flush(timeout_s=20)
    assert writer.num_dropped == 10
    read_end, fresh = os.pipe()
    os.dup2(fresh, write_end)  # as a named pipe that is opened again
    os.close(fresh)
    reader = Reader(read_end)
    writer.put("back\n")
    assert writer.flush(timeout_s=20)
    await wait_until(lambda: reader.lines == ["back\n", "dropped 10\n"], "it goes on, and says what is missing")


async def test_a_descriptor_that_another_process_made_non_blocking(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1])
    put = [*_lines(0, 200), f"{'long' * 5000}\n"]
    for line in put:
        writer.put(line)
    assert not writer.flush(timeout_s=0.1)
    reader = Reader(pipe[0])
    assert writer.flush(timeout_s=20)
    await wait_until(lambda: reader.lines == put, "all of it was read")


async def test_the_lines_of_two_writers_fall_between_each_other(pipe: tuple[int, int]) -> None:
    reader = Reader(pipe[0])
    writers = [LineWriter(os.dup(pipe[1])) for _ in range(2)]
    for line in _lines(0, 500):
        for writer in writers:
            writer.put(line)
    assert all(writer.flush(timeout_s=20) for writer in writers)
    await wait_until(lambda: len(reader.data) == 2 * 500 * 100, "all of it was read")
    assert sorted(reader.lines) == sorted(2 * _lines(0, 500))


def test_a_process_that_forks_continues_to_write(pipe: tuple[int, int]) -> None:
    code = """
import os
from penstock import stdio
stdio.writer(1).put("parent\\n")
assert stdio.writer(1).flush(20)
if (pid := os.fork()) == 0:
    stdio.writer(1).put("child\\n")
    os._exit(not stdio.writer(1).flush(20))
assert os.waitpid(pid, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "parent\nchild\n"


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "12", "02", "012"])
def test_closed_descriptors_are_opened(closed: str, pipe: tuple[int, int]) -> None:
    """Else a socket gets the number of stderr, say, and the log goes to a client."""
    code = f"""
import os, sys
from penstock.stdio import open_missing
open_missing()
print("to stdout", flush=True); print("to stderr", file=sys.stderr, flush=True); sys.stdin.read()
found = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in (0, 1, 2)]
assert all(os.get_inheritable(fd) for fd in (0, 1, 2))
assert all((path == os.devnull) == (str(fd) in "{closed}") for fd, path in enumerate(found)), found
assert os.open(os.devnull, os.O_RDONLY) > 2
os.write({pipe[1]}, b"well")
"""
    shell = " ".join(['"$@"', *(f"{fd}{'<' if fd == '0' else '>'}&-" for fd in closed)])
    subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", code],
        input=b"", capture_output=True, check=False, pass_fds=[pipe[1]],
    )  # fmt: skip
    os.set_blocking(pipe[0], False)
    assert os.read(pipe[0], 10) == b"well"
