"""Workers that die, freeze, crash at the worst place, meet poison, or are replaced one by one."""

from __future__ import annotations

import asyncio
import signal
import time

from penstock.worker.crash_points import POINTS
from tests.chaos.http import get
from tests.chaos.load import Habits
from tests.chaos.plant import QUEUE, Member
from tests.chaos.registry import scenario
from tests.chaos.run import MODEL, Run, Target
from tests.support.reading import metric

LEASE_LAPSED_S = 3.2
SUPERVISED = ("--supervised",)
KILLED = Target(says="p99 ≤ 3.0 s, max ≤ 3.5 s", p99_ms=3000, max_ms=3500, counts="attempt")


@scenario(KILLED, seconds=13)
async def kill_workers(run: Run) -> None:
    """kill -9 of workers at random, 3 workers, 100 streams; each is started again."""
    await run.build(workers=3, gateways=2)
    run.load.start(100)
    await run.until_streaming(60)
    until = time.monotonic() + run.seconds
    while time.monotonic() < until:
        await run.kill(run.rng.choice(run.plant.workers))
        await asyncio.sleep(run.rng.uniform(0.1, 1.0))


@scenario(Target(says="0 failed"), seconds=9)
async def kill_workers_unread(run: Run) -> None:
    """kill -9 of workers that cannot continue an answer, one after the other: whole answers begin again."""
    await run.build(
        workers=3, gateways=2, habits=Habits(whole_share=1.0), worker_args=("--model", f"{MODEL},resumes=false")
    )
    run.load.start(60)
    until, begun_again = time.monotonic() + run.seconds, 0.0
    while time.monotonic() < until:
        await asyncio.sleep(run.rng.uniform(0.5, 1.0))
        await run.kill(run.rng.choice(run.plant.workers))
        await asyncio.sleep(LEASE_LAPSED_S)  # what it held runs elsewhere by then; a second death would be another's
        pages = [await get(worker.url, "/metrics") for worker in run.plant.workers]
        begun_again = max(begun_again, sum(metric(page.decode(), "penstock_reruns_total") for _, page in pages))
    run.notes["answers that began again"] = f"{begun_again:g}"
    run.check(begun_again > 0, "no answer began again")


@scenario(Target(says="p99 ≤ 1.0 s", p99_ms=1000, counts="attempt"), seconds=4)
async def kill_supervised(run: Run) -> None:
    """kill -9 of the working child of a supervised worker: its parent tells at once."""
    await run.build(workers=3, gateways=1, worker_args=SUPERVISED)
    run.load.start(60)
    await run.until_streaming(40)
    until = time.monotonic() + run.seconds
    while time.monotonic() < until:
        worker = run.rng.choice(run.plant.workers)
        child = worker.pids()[-1]
        run.inject("kill -9 child")
        worker.signal(signal.SIGKILL)

        async def is_back(worker: Member = worker, child: int = child) -> bool:
            return len(pids := worker.pids()) > 1 and pids[-1] != child

        await run.until(is_back, "the supervisor starts another")
        await asyncio.sleep(run.rng.uniform(0.5, 1.5))
    for worker in run.plant.workers:
        worker.before = (0, 0)  # its child is another one now


@scenario(KILLED, seconds=10)
async def crash_points(run: Run) -> None:
    """A worker that kills itself at each point of its loop in turn, beside two that do not."""
    await run.build(workers=2, gateways=1, habits=Habits(min_tokens=20, max_tokens=50))
    run.load.start(60)
    await run.until_streaming(30)
    until = time.monotonic() + run.seconds
    points = list(POINTS)
    while points or (run.is_long and time.monotonic() < until):
        pair = [points.pop(0), points.pop(0)] if points else run.rng.sample(POINTS, 2)
        await asyncio.gather(*(_crash_at(run, point) for point in pair))
        if not points and not run.is_long:
            return
        await asyncio.sleep(LEASE_LAPSED_S)  # their work goes on: three deaths in a row without a token are poison


async def _crash_at(run: Run, point: str) -> None:
    passage = run.rng.randint(1, 6)
    worker = run.plant.add("worker", env={"PENSTOCK_TEST_CRASH": f"{point}:{passage}"})
    worker.is_survivor = False
    while worker.is_alive:
        pids = worker.pids()
        await asyncio.sleep(0.005)
        if len(pids) > 1 and pids[-1] not in worker.pids():
            worker.kill()  # its supervisor would start it again, to crash again
            await worker.ended()
    run.inject(f"crash {point}")
    run.plant.forget(worker)


MAX_THAWS = 6
FROZEN = Target(says="0 errors; p99 ≤ 3.0 s", p99_ms=3000, counts="attempt")


@scenario(FROZEN, seconds=5)
async def freeze_workers(run: Run) -> None:
    """SIGSTOP of a worker for 1 and 4 s (10 s as well in a long run), then it wakes."""
    await run.build(workers=3, gateways=1)
    run.load.start(80)
    await run.until_streaming(50)
    until = time.monotonic() + run.seconds
    pauses = [1.0, 4.0, 10.0] if run.is_long else [1.0, 4.0]
    while pauses or time.monotonic() < until:
        for_s = pauses.pop(0) if pauses else run.rng.choice([1.0, 4.0])
        worker = run.rng.choice(run.plant.workers)
        run.inject(f"SIGSTOP {for_s:g} s")
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(for_s)
        worker.signal(signal.SIGCONT)
        await asyncio.sleep(0.3)
    run.notes["late frames refused"] = await _refused(run.plant.workers)


@scenario(FROZEN, seconds=4)
async def late_frames(run: Run) -> None:
    """A worker frozen between its step and its emit: what it writes when it wakes must be refused."""
    await run.build(workers=1, gateways=1)
    run.load.start(40)
    await run.until_streaming(20)
    wanted = 2 if run.is_long else 1
    run.load.start(20)
    for _ in range(MAX_THAWS):
        run.notes["late frames refused"] = run.notes.get("late frames refused", 0) + await _freeze_and_thaw(run)
        if run.notes["late frames refused"] >= wanted:
            return
    run.check(False, f"of {MAX_THAWS} workers that woke up fewer than {wanted} wrote a late frame")


async def _freeze_and_thaw(run: Run) -> int:
    """How many frames were refused of a worker that wakes when its jobs are another's. None where its lease's thread
    asked the store first: then it writes nothing any more, which is as good and shows nothing of the fence.
    """
    passage = run.rng.randint(20, 60)
    worker = run.plant.add("worker", env={"PENSTOCK_TEST_CRASH": f"mid_step:{passage}:stop"})

    async def is_stopped() -> bool:
        return worker.state() == "T"

    for entry in run.load.open_entries[::2]:
        run.load.leave(entry)  # room for new ones at the new worker
    await run.until(is_stopped, "it stops between its step and its emit", timeout_s=20)
    run.inject("frozen mid_step")

    async def is_taken_over() -> bool:
        held = await run.plant.held()
        return len(held) == 1 and not await run.plant.ask("LLEN", QUEUE)

    async def is_back() -> bool:
        return worker.output().count('"message":"working"') > 1 or await _refused([worker]) > 0

    await run.until(is_taken_over, "its jobs are another worker's", timeout_s=20)
    worker.signal(signal.SIGCONT)
    await run.until(is_back, "it has a lease again, or has had a frame refused")
    num = await _refused([worker])
    run.plant.forget(worker)
    await worker.stop()
    return num


async def _refused(workers: list[Member]) -> int:
    """Frames that the store refused; their workers had woken up after their work was somebody else's."""
    num = 0.0
    for worker in workers:
        _, page = await get(worker.url, "/metrics")
        num += metric(page.decode(), "penstock_store_errors_total", kind="emit_refused")
    return int(num)


@scenario(Target(says="only it fails; ≤ 3 workers lost", counts="attempt"), seconds=10)
async def poison(run: Run) -> None:
    """One request that crashes its worker, among 64: only it fails, and at most 3 workers are lost."""
    await run.build(
        workers=2, gateways=1, worker_args=(*SUPERVISED, "--model", "mock=mock:step_ms=40,chain=true,scripted=true")
    )
    for _ in range(63):
        run.load.send(max_tokens=run.rng.randint(150, 250))
    await run.until_streaming(60)
    run.inject("poison")
    bad = run.load.send("[[crash]]", 50, may_fail=True)
    lost = 0
    working = {worker: worker.pids()[-1] for worker in run.plant.workers}
    deadline = time.monotonic() + 30
    while bad.outcome == "open" and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        for worker, pid in list(working.items()):
            if not worker.is_alive:
                lost += 1
                del working[worker]
                new = await run.plant.replace(worker)
                working[new] = new.pids()[-1]
                worker.is_survivor = False
            elif len(pids := worker.pids()) > 1 and pids[-1] != pid:
                lost += 1
                worker.before = (0, 0)  # its child is another one now
                working[worker] = pids[-1]
    lost += sum(len(worker.pids()) == 1 for worker in working)
    run.notes["workers lost"] = lost
    run.check(lost <= 3, f"one poison took {lost} workers")
    run.check(bad.code == "request_poisoned", f"the poison ended in {bad.outcome} {bad.code}")


@scenario(Target(says="0 failed; ≤ 0.3 s", p99_ms=300, counts="attempt"), seconds=10)
async def rolling_restart(run: Run) -> None:
    """Every worker, then every gateway, is replaced under load, by SIGTERM."""
    await run.build(
        workers=2,
        gateways=2,
        habits=Habits(min_tokens=20, max_tokens=50),
        worker_args=(*SUPERVISED, "--drain-s", "0.3"),
        gateway_args=("--drain-s", "30"),
    )
    run.load.start(60)
    await run.until_streaming(40)
    for kind in ("worker", "gateway"):
        for old in list(run.plant.workers if kind == "worker" else run.plant.gateways):
            new = run.plant.add(kind)
            if kind == "gateway":
                run.plant.gateways.remove(new)  # no client knows it before it is ready
            await new.ready()
            if kind == "gateway":
                run.plant.gateways.append(new)
            run.plant.forget(old)
            await asyncio.sleep(0.1)  # as a load balancer would: first no new requests, then the signal
            run.inject(f"SIGTERM {kind}")
            status = await old.stop()
            run.check(status == 0, f"{old.name} ended with {status}")
    for gateway in run.plant.gateways:
        await get(gateway.url, "/livez")


UNREAD = Target(says="0 errors; SIGTERM ends it with status 0", counts="attempt")


@scenario(UNREAD, seconds=4)
async def unread_stderr(run: Run) -> None:
    """A gateway and a worker whose output goes to a pipe that nothing reads: they serve, keep their leases and stop."""
    short = Habits(min_tokens=1, max_tokens=3, whole_share=0.5)
    await run.build(workers=1, gateways=1, habits=short, worker_args=("--model", "mock=mock:step_ms=1,chain=true"))
    loud = ("--log-level", "debug")
    worker, gateway = (run.plant.add(kind, *loud, is_read=False) for kind in ("worker", "gateway"))
    await asyncio.gather(worker.ready(), gateway.ready())
    for member in (worker, gateway):
        member.before = member.use()
    run.inject("stderr is not read")
    run.load.start(40)

    async def has_dropped() -> bool:
        return await _dropped(gateway) > 0 and await _dropped(worker) > 0

    await run.until(has_dropped, "both have had to drop lines", timeout_s=90)
    await asyncio.sleep(run.seconds)  # longer than any lease
    run.check(worker.is_alive and gateway.is_alive, "one of them has ended")
    for member in (worker, gateway):
        status, _ = await get(member.url, "/readyz")
        run.check(status == 200, f"{member.name} is not ready: {status}")
        run.notes[f"lines that the {member.kind} dropped"] = await _dropped(member)
    await run.load.stop(60)
    for member in (gateway, worker):
        run.plant.forget(member)
        status = await member.stop()
        run.check(status == 0, f"{member.name} ended with {status}")


async def _dropped(member: Member) -> int:
    _, page = await get(member.url, "/metrics")
    return int(metric(page.decode(), "penstock_log_lines_dropped_total"))
