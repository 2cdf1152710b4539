"""The small parent, with children of a few lines: what it starts again, what it passes on, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from penstock.processes.child import LIFELINE, send_to_parent
from penstock.processes.signals import once_each
from penstock.processes.supervisor import Supervisor
from tests.support.waiting import wait_until

PARENT = """
import sys
from penstock.processes.supervisor import Supervisor

def on_death(death):
    print("death", death.status, death.last_line, flush=True)

num, child = int(sys.argv[1]), sys.argv[2]
sys.exit(Supervisor([sys.executable, "-u", "-c", child], num=num, on_death=on_death).run())
"""
CHILD = """
import os, signal, sys, time
from penstock.processes.child import die_with_parent, send_to_parent
die_with_parent()
assert not [name for name in os.environ if name.startswith("PENSTOCK_") and name.endswith("_FD")]
"""
# One write for each line: two children share the file, and `print` writes word by word.
WAIT = "\nos.write(1, f'up {os.getpid()}\\n'.encode())\nwhile True: time.sleep(60)\n"


class Parent:
    def __init__(self, child: str, num: int = 1, program: str = PARENT) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        command = [sys.executable, "-u", "-c", program, str(num), CHILD + child]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def lines(self, first: str) -> list[str]:
        text = os.pread(self.log.fileno(), 1 << 20, 0)  # the offset is shared with those who write: left alone
        return [line for line in text.decode().splitlines() if line.split(" ")[0] == first]

    async def children(self, num: int) -> list[int]:
        """The pids of the children so far, once there have been `num`."""
        await wait_until(lambda: len(self.lines("up")) >= num, f"{num} children are up")
        return [int(line.split()[1]) for line in self.lines("up")]

    async def end(self) -> int:
        await wait_until(lambda: self.process.poll() is not None, "the parent ends")
        return self.process.returncode

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture
def parents() -> Iterator[list[Parent]]:
    started: list[Parent] = []
    yield started
    for parent in started:
        parent.stop()


@pytest.fixture
def lifeline() -> Iterator[tuple[int, int]]:
    """Its two ends: what a child watches, and what its parent holds."""
    ends = os.pipe()
    yield ends
    for number in ends:
        os.close(number)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_dead_child_is_replaced_and_its_death_has_its_last_line(parents: list[Parent]) -> None:
    parents.append(parent := Parent("send_to_parent('first'); send_to_parent(f'last of {os.getpid()}')" + WAIT))
    (first,) = await parent.children(1)
    os.kill(first, signal.SIGKILL)
    _, second = await parent.children(2)
    assert parent.lines("death") == [f"death -9 last of {first}"]
    parent.process.terminate()
    assert await parent.end() == 0
    assert parent.lines("death")[1:] == [f"death -15 last of {second}"]
    assert not _is_alive(second)


async def test_a_child_that_tells_more_than_a_pipe_holds_is_not_held_up(parents: list[Parent]) -> None:
    parents.append(parent := Parent("for i in range(3000): send_to_parent(f'{i} ' + 'x' * 60)" + WAIT))
    (child,) = await parent.children(1)
    os.kill(child, signal.SIGKILL)
    await wait_until(lambda: parent.lines("death"), "it is noticed")
    assert parent.lines("death") == ["death -9 2999 " + "x" * 60]


async def test_a_signal_goes_to_every_child_and_the_worst_status_counts(parents: list[Parent]) -> None:
    leave = "signal.signal(signal.SIGTERM, lambda number, frame: os._exit(3))"
    parents.append(parent := Parent(leave + WAIT, num=2))
    children = await parent.children(2)
    parent.process.terminate()
    assert await parent.end() == 3
    assert [line.split()[1] for line in parent.lines("death")] == ["3", "3"]
    assert not any(map(_is_alive, children))


async def test_a_child_killed_while_stopping_is_128_and_the_signal(parents: list[Parent]) -> None:
    parents.append(parent := Parent("signal.signal(signal.SIGTERM, lambda number, frame: print('told'))" + WAIT))
    (child,) = await parent.children(1)
    parent.process.terminate()
    await wait_until(lambda: parent.lines("told"), "the child has been told")
    os.kill(child, signal.SIGKILL)
    assert await parent.end() == 128 + signal.SIGKILL


async def test_a_child_with_an_invalid_setting_is_not_restarted(parents: list[Parent]) -> None:
    parents.append(parent := Parent("sys.exit(2)"))
    assert await parent.end() == 2
    assert parent.lines("death") == ["death 2 "]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(0)", 0),
        ("os._exit(1)", 1),
        ("os._exit(70)", 70),
        ("os._exit(255)", 255),
        ("raise RuntimeError", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
    ],
)
async def test_whatever_else_a_child_ends_with_it_is_started_again(
    parents: list[Parent], end: str, status: int
) -> None:
    parents.append(parent := Parent(end, num=2))
    await wait_until(lambda: len(parent.lines("death")) >= 3, "both, and one of them again")
    assert {line.split()[1] for line in parent.lines("death")} == {str(status)}
    parent.process.terminate()
    await parent.end()


async def test_a_pause_is_not_cut_short_by_another_death(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("penstock.processes.supervisor.time.monotonic", lambda: now)
    supervisor = Supervisor(["unused"], num=2)
    for _ in range(6):
        supervisor._failed()
    assert supervisor._due == [100.05, 100.5, 101.0, 102.0, 105.0, 105.0]


def test_after_a_child_that_was_healthy_the_pauses_begin_anew(
    lifeline: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("penstock.processes.supervisor.time.monotonic", lambda: now)
    supervisor = Supervisor([sys.executable, "-c", "pass"])
    supervisor._failures = 4
    for now, pause in ((200.0, 5.0), (300.0, 5.0), (400.0, 0.05)):
        supervisor._due.clear()
        supervisor._start(lifeline[0])
        (child,) = supervisor._children.values()
        child.process.wait()
        now += 9.0 if pause == 5.0 else 11.0
        assert supervisor._reap() == [0]
        assert supervisor._due == [now + pause]


async def test_a_status_of_2_ends_no_others_that_have_run_for_a_while(parents: list[Parent], tmp_path: Path) -> None:
    program = PARENT.replace("\nnum,", "\nfrom penstock.processes import supervisor\nsupervisor._HEALTHY_S = 0.0\nnum,")
    first = f"try: os.mkdir({str(tmp_path / 'first')!r})\nexcept FileExistsError: sys.exit(2)"
    parents.append(parent := Parent(first + WAIT, num=2, program=program))
    (child,) = await parent.children(1)
    await wait_until(lambda: len(parent.lines("death")) >= 2, "the other one is tried again")
    assert set(parent.lines("death")) == {"death 2 "}
    assert parent.process.poll() is None
    assert _is_alive(child)


async def test_a_death_is_reported_before_another_child_is_started(parents: list[Parent]) -> None:
    code = """
import subprocess, sys
from penstock.processes import supervisor
start = subprocess.Popen

def popen(*args, **more):
    print("start", flush=True)
    return start(*args, **more)

subprocess.Popen = popen
command = [sys.executable, "-c", "pass"]
sys.exit(supervisor.Supervisor(command, on_death=lambda death: print("start of", death.pid, flush=True)).run())
"""
    parents.append(parent := Parent("", program=code))
    await wait_until(lambda: len(parent.lines("start")) >= 5, "two have died")
    assert ["of" in line for line in parent.lines("start")[:5]] == [False, True, False, True, False]


def test_a_child_that_is_just_starting_is_stopped_too(
    lifeline: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor([sys.executable, "-c", "import time; time.sleep(60)"])
    start = subprocess.Popen

    def popen(*args: Any, **more: Any) -> subprocess.Popen[bytes]:
        process = start(*args, **more)
        supervisor._stop(signal.SIGTERM)  # the signal comes now
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    supervisor._start(lifeline[0])
    (child,) = supervisor._children.values()
    try:
        assert child.process.wait(8) == -signal.SIGTERM
    finally:
        child.process.kill()
        child.process.wait()


def test_while_it_stops_none_is_started(lifeline: tuple[int, int]) -> None:
    supervisor = Supervisor([sys.executable, "-c", "pass"], num=2)
    supervisor._stop(signal.SIGTERM)
    supervisor._failed()
    supervisor._due = [0.0]
    supervisor._start_due(lifeline[0])
    assert not supervisor._children


def test_the_stand_in_answers_while_no_child_runs_and_none_is_due_at_once(
    lifeline: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    readable, writable = os.pipe()
    os.write(writable, b"somebody waits")
    answered: list[float] = []
    now = 100.0

    class StandIn:
        def fileno(self) -> int:
            return readable

        def answer(self) -> None:
            answered.append(now)

    monkeypatch.setattr("penstock.processes.supervisor.time.monotonic", lambda: now)
    supervisor = Supervisor([sys.executable, "-c", "pass"], stand_in=StandIn())
    for now, due in ((101.0, 101.05), (102.0, 102.5), (103.0, 103.5)):
        if now == 103.0:
            supervisor._start(lifeline[0])
        supervisor._due = [due]
        os.write(supervisor._wake_out, b"x")
        supervisor._sleep()
    assert answered == [102.0]
    for child in supervisor._children.values():
        child.process.wait()
    for number in (readable, writable):
        os.close(number)


async def test_a_child_that_cannot_be_started_or_mourned_takes_nothing_down(parents: list[Parent]) -> None:
    code = """
import subprocess, sys
from penstock.processes import supervisor
start, num_tries = subprocess.Popen, 0

def popen(*args, **more):
    global num_tries
    num_tries += 1
    print("try", flush=True)
    if num_tries % 2:
        raise BlockingIOError("no process left")
    return start(*args, **more)

def on_death(death):
    raise FileNotFoundError("the metrics of the dead")

subprocess.Popen = popen
command = [sys.executable, "-c", "pass"]
sys.exit(supervisor.Supervisor(command, on_death=on_death).run())
"""
    parents.append(parent := Parent("", program=code))
    await wait_until(lambda: len(parent.lines("try")) >= 4, "it goes on")
    parent.process.terminate()
    assert await parent.end() == 0


async def test_children_die_with_a_parent_that_was_killed(parents: list[Parent]) -> None:
    parents.append(parent := Parent(WAIT, num=2))
    children = await parent.children(2)
    parent.process.kill()
    await wait_until(lambda: not any(map(_is_alive, children)), "no child is left")


def test_without_its_parent_a_child_prints_a_message_and_ends_with_1() -> None:
    watched, held = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", CHILD + "time.sleep(60)"],
        env={**os.environ, LIFELINE: str(watched)},
        pass_fds=[watched],
        stderr=subprocess.PIPE,
    )
    os.close(watched)
    os.close(held)
    try:
        _, said = child.communicate(timeout=8)
    finally:
        child.kill()
    assert child.returncode == 1
    assert b"the parent process exited" in said


def test_a_line_for_a_parent_that_is_gone_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    send_to_parent("without a parent")
    child_pipe, parent_pipe = os.pipe()
    os.close(child_pipe)
    monkeypatch.setattr("penstock.processes.child._parent_pipe", parent_pipe)
    send_to_parent("the parent ended a moment ago")
    os.close(parent_pipe)


def test_two_signals_within_a_moment_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("penstock.processes.signals.time.monotonic", lambda: now)
    heard: list[int] = []
    handle = once_each(heard.append)
    for now, number in ((10.0, 1), (10.4, 2), (10.6, 3), (10.7, 4), (12.0, 5)):  # noqa: B007 - `now` is the clock
        handle(number)
    assert heard == [1, 3, 5]
