"""The worker over the memory transport: what its clients get, what it holds, and how it leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from penstock.backends import Backend
from penstock.backends.mock.engine import MockBackend
from penstock.backends.mock.text import verify_chain
from penstock.errors import BackendError, ConfigError, StoreUnavailable, WorkerLost
from penstock.event import Completion, Done, Event, Failed, Tokens, Usage, fold
from penstock.fleet import Capabilities, Engines, WorkerInfo
from penstock.job import Batch, Claim, Job, Sampling
from penstock.metrics import Metrics
from penstock.transports.base import LEASE_S, Renewal
from penstock.transports.memory import MemoryTransport
from penstock.worker import tenure
from penstock.worker.crash_points import POINTS, crash_points_from, no_crash_points
from penstock.worker.lease import EngineProgress
from penstock.worker.worker import Worker
from tests.support.memory import changing
from tests.support.waiting import LONG_S, PATIENCE, wait_until


class Store(MemoryTransport):
    """Memory that can be away, counts what is written in one round trip, and whose lease can be taken away."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_away = False
        self.writes: list[list[Event]] = []
        self.tried: list[list[Event]] = []
        self.num_waiting = self.num_waits_at_once = 0

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailable("away")

    async def enlist(self, info: WorkerInfo) -> None:
        self._check()
        await super().enlist(info)

    async def renew(self, info: WorkerInfo, running: Sequence[str]) -> Renewal:
        self._check()
        return await super().renew(info, running)

    async def wait(self, worker_id: str, timeout_s: float) -> str | None:
        self._check()
        self.num_waiting += 1
        self.num_waits_at_once = max(self.num_waiting, self.num_waits_at_once)
        try:
            return await super().wait(worker_id, min(timeout_s, 0.03))  # so that tests end sooner
        finally:
            self.num_waiting -= 1

    async def emit(self, worker_id: str, events: Iterable[Event]) -> set[str]:
        events = list(events)
        self.tried.append(events)
        await asyncio.sleep(0)
        self._check()
        refused = await super().emit(worker_id, events)
        self.writes.append(events)
        return refused

    def expire(self, worker_id: str) -> None:
        with changing(self) as state:
            state.workers[worker_id].lapses_at = 0.0

    def held(self) -> dict[str, list[str]]:
        return {worker: list(ids) for worker, ids in self.snapshot().lists.items() if ids}

    @property
    def depth(self) -> int:
        return len(self.snapshot().queue)


class Rig:
    def __init__(self, store: Store, worker: Worker) -> None:
        self.store = store
        self.worker = worker
        self.running: asyncio.Task[None] | None = None

    async def submit(self, id: str, prompt: str = "Tell me.", timeout_s: float = 60.0, **sampling: Any) -> Job:
        stream = sampling.pop("stream", True)
        model = sampling.pop("model", "mock")
        sampling = {"max_tokens": 8, **sampling}
        job = Job(
            id=f"g1.{id}", model=model, prompt=prompt, sampling=Sampling(**sampling), timeout_s=timeout_s, stream=stream
        )
        await self.store.submit(job, "g1", 0)
        return job

    def log(self, job: Job) -> list[Event]:
        return list(self.store.snapshot().jobs[job.id].log)

    def answer(self, job: Job) -> Completion:
        return fold(self.log(job))

    async def end(self, *jobs: Job, timeout_s: float = 5.0) -> list[Completion]:
        await wait_until(lambda: all(self.answer(job).end for job in jobs), "every job ends", timeout_s)
        for job in jobs:
            ends = [event for event in self.log(job) if isinstance(event, Done | Failed)]
            assert ends == self.log(job)[-1:], "exactly one end, and nothing after it"
        return [self.answer(job) for job in jobs]

    async def begun(self, job: Job, num: int = 1) -> None:
        await wait_until(lambda: len(self.answer(job).tokens) >= num, f"{job.id} has {num} tokens")


@asynccontextmanager
async def rig(
    backends: Mapping[str, Backend] | None = None, store: Store | None = None, **kwargs: Any
) -> AsyncIterator[Rig]:
    store = store or Store()
    worker = Worker(store, backends or {"mock": MockBackend()}, **{"drain_s": 0.2, **kwargs})
    made = Rig(store, worker)
    made.running = asyncio.create_task(worker.run())
    try:
        yield made
    finally:
        worker.stop()
        worker.stop()
        await asyncio.wait({made.running}, timeout=LONG_S)
        assert made.running.done(), "the worker ends"
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
        await asyncio.sleep(0)
        left = [task for task in others if not task.done()]
        assert not left, "no task is left behind"


class Stubborn(Backend):
    """It cannot continue anything."""

    async def stream(self, job: Job) -> AsyncIterator[str]:
        yield "new"


class Lossy(Backend):
    """Its first `num_losses` answers break after two tokens."""

    capabilities = Capabilities(continuous=True)

    def __init__(self, num_losses: int) -> None:
        self.num_losses = num_losses
        self.num_runs = 0

    async def stream(self, job: Job) -> AsyncIterator[str]:
        self.num_runs += 1
        run = self.num_runs
        for index in range(4):
            if index == 2 and run <= self.num_losses:
                raise WorkerLost("The engine has died.")
            yield f"{run} {index}"


class OftenAway(Store):
    """A store whose first reruns fail: one before it is done, one after."""

    num_reruns = 0

    async def rerun(self, worker_id: str, claims: Sequence[Claim]) -> list[Claim]:
        self.num_reruns += 1
        if self.num_reruns == 1:
            raise StoreUnavailable("away")
        left = await super().rerun(worker_id, claims)
        if self.num_reruns == 2:
            raise StoreUnavailable("away")
        return left


class SlowList(Store):
    """A store that is slow to say what is in a worker's list."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def take(self, worker_id: str, want: int) -> list[str]:
        await self.answers.wait()
        return await super().take(worker_id, want)


class TestIntake:
    async def test_what_was_just_moved_does_not_wait_for_the_list(self) -> None:
        store = SlowList()
        async with rig(store=store, window_s=0.0) as r:
            await wait_until(lambda: store.num_waiting == 1, "the worker waits")
            store.answers.clear()
            first, second = await r.submit("1"), await r.submit("2")
            await r.end(first)
            assert not self._is_claimed(r, second)
            store.answers.set()
            await r.end(second)
            assert r.answer(second).tokens

    @staticmethod
    def _is_claimed(r: Rig, job: Job) -> bool:
        return r.store.snapshot().jobs[job.id].state != "queued"

    @pytest.mark.parametrize("is_known", [True, False])
    async def test_the_list_says_it_too(self, is_known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker that has one slot, and is told what was moved, or is not."""
        store = Store()
        wait = store.wait

        async def forgetful(worker_id: str, timeout_s: float) -> str | None:
            moved = await wait(worker_id, timeout_s)
            return moved if is_known else None

        monkeypatch.setattr(store, "wait", forgetful)
        async with rig(store=store, max_batch_size=1, max_batches=1, window_s=0.0) as r:
            jobs = [await r.submit(str(i)) for i in range(5)]
            await r.end(*jobs)
            assert not store.held()


class TestAnswers:
    async def test_jobs_of_many_shapes_each_get_their_own_answer(self) -> None:
        backend = MockBackend()
        async with rig({"mock": backend}) as r:
            jobs = [await r.submit(str(i), f"prompt {i}", max_tokens=1 + i % 5, stream=i % 2 == 0) for i in range(64)]
            for job, done in zip(jobs, await r.end(*jobs), strict=True):
                assert list(done.tokens) == backend.expected(job)
                assert isinstance(done.end, Done)
                assert done.end.usage == Usage(2, job.sampling.max_tokens)
            await wait_until(lambda: not r.store.held(), "its list is empty")

    async def test_tokens_of_a_step_travel_in_one_write_and_the_last_one_with_the_end(self) -> None:
        async with rig({"mock": MockBackend(step_ms=15)}, max_batch_size=8, window_s=5.0, closes_early=False) as r:
            jobs = [await r.submit(str(i), max_tokens=3) for i in range(8)]
            await r.end(*jobs)
            assert {len(write) for write in r.store.writes} == {8}
            assert len(r.store.writes) <= 3
            assert all(isinstance(event, Done) and event.tokens for event in r.store.writes[-1])

    async def test_a_whole_answer_is_written_in_few_frames(self) -> None:
        async with rig({"mock": MockBackend(step_ms=1)}) as r:
            job = await r.submit("a", max_tokens=70, stream=False)
            (done,) = await r.end(job)
            assert len(done.tokens) == 70
            frames = [event for write in r.store.writes for event in write]
            assert len(frames) < 20, "1 + 32 + 32 + the end, unless the machine is slow and time releases more"
            assert len(getattr(frames[0], "tokens", ())) <= 5, "the first token does not wait for others"

    @pytest.mark.alone
    @pytest.mark.parametrize(("closes_early", "waits_s"), [(False, 0.4), (True, 0.1)])
    async def test_a_lone_request_waits_for_its_window_and_not_much_longer(
        self, closes_early: bool, waits_s: float
    ) -> None:
        async with rig(window_s=0.4, closes_early=closes_early) as r:
            await wait_until(lambda: r.store.num_waiting, "it waits for work")
            began = time.monotonic()
            job = await r.submit("a", max_tokens=1)
            await wait_until(lambda: r.answer(job).end, "its end")
            assert waits_s - 0.002 <= time.monotonic() - began < waits_s + 0.25 * PATIENCE

    async def test_one_bad_request_in_a_batch_fails_alone(self) -> None:
        async with rig({"mock": MockBackend(scripted=True)}) as r:
            jobs = [await r.submit(str(i), "[[fail_after=2]]" if i == 3 else "fine") for i in range(8)]
            for i, done in enumerate(await r.end(*jobs)):
                assert isinstance(done.end, Failed if i == 3 else Done)
                assert len(done.tokens) == (2 if i == 3 else 8)

    async def test_a_claim_with_tokens_goes_on_after_them(self) -> None:
        store = Store()
        backend = MockBackend(chain=True)
        async with rig({"mock": backend}, store) as r:
            job = Job(id="g1.r", model="mock", prompt="p", sampling=Sampling(max_tokens=6))
            await store.restore(job, "g1", backend.expected(job)[:4], 0)
            (done,) = await r.end(job)
            assert verify_chain(done.tokens) is None
            assert len(done.tokens) == 6

    @pytest.mark.parametrize("is_read", [False, True])
    async def test_what_cannot_be_continued_begins_again_unless_it_was_read(self, is_read: bool) -> None:
        store, metrics = Store(), Metrics()
        backend = MockBackend(resumes=False, chain=True)
        lost, fine = (
            Job(id=f"g1.{name}", model="mock", prompt=name, sampling=Sampling(max_tokens=6), stream=is_read)
            for name in ("lost", "fine")
        )
        await store.restore(lost, "g1", ("of", "another", "generation"), 0)
        await store.submit(fine, "g1", 0)
        async with rig({"mock": backend}, store, metrics=metrics) as r:
            again, usual = await r.end(lost, fine)
        assert usual.tokens == tuple(backend.expected(fine))
        page = metrics.expose()[0].decode()
        assert ('penstock_reruns_total{model="mock"} 1.0' in page) is not is_read
        if is_read:
            assert isinstance(again.end, Failed)
            assert (again.end.code, again.tokens) == ("worker_lost", ("of", "another", "generation"))
        else:
            assert isinstance(again.end, Done)
            assert again.tokens == tuple(backend.expected(lost))
            assert again.end.usage.completion_tokens == 6

    async def test_what_has_all_its_tokens_only_gets_its_end(self) -> None:
        store = Store()
        async with rig({"mock": Stubborn()}, store) as r:
            job = Job(id="g1.all", model="mock", prompt="p", sampling=Sampling(max_tokens=2), stream=False)
            await store.restore(job, "g1", ("a", "b"), 0)
            (done,) = await r.end(job)
            assert isinstance(done.end, Done)
            assert done.tokens == ("a", "b")

    async def test_a_store_that_is_away_when_an_answer_begins_again_costs_it_nothing(self) -> None:
        store = OftenAway()
        backend = MockBackend(resumes=False)
        async with rig({"mock": backend}, store) as r:
            job = Job(id="g1.lost", model="mock", prompt="p", sampling=Sampling(max_tokens=4), stream=False)
            await store.restore(job, "g1", ("other",), 0)
            (done,) = await r.end(job)
            assert done.tokens == tuple(backend.expected(job))
            assert store.num_reruns == 2, "the claim after the second one has no tokens"

    @pytest.mark.parametrize(("stream", "num_losses", "num_runs"), [(True, 1, 1), (False, 1, 2), (False, 9, 2)])
    async def test_a_whole_answer_that_its_engine_loses_begins_again_once(
        self, stream: bool, num_losses: int, num_runs: int
    ) -> None:
        backend = Lossy(num_losses)
        async with rig({"mock": backend}) as r:
            job = await r.submit("a", stream=stream)
            (done,) = await r.end(job)
        assert backend.num_runs == num_runs
        assert isinstance(done.end, Done if num_losses < num_runs else Failed)
        assert done.tokens == tuple(f"{num_runs} {index}" for index in range(4 if isinstance(done.end, Done) else 2))

    async def test_a_line_is_logged_for_every_job_and_never_its_prompt(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with rig({"mock": MockBackend(scripted=True)}) as r:
            jobs = [await r.submit("a", "SECRET words", max_tokens=2), await r.submit("b", "[[fail]] SECRET")]
            await r.end(*jobs)
            await wait_until(lambda: len([x for x in caplog.records if x.message == "finished"]) == 2, "two lines")
        lines = {x.__dict__["request_id"]: x.__dict__ for x in caplog.records if x.message == "finished"}
        assert lines["g1.a"]["outcome"] == "length"
        assert lines["g1.b"]["outcome"] == "backend_error"
        assert (lines["g1.a"]["prompt_tokens"], lines["g1.a"]["completion_tokens"]) == (2, 2)
        assert lines["g1.a"]["queue_ms"] >= 0
        assert lines["g1.a"]["generate_ms"] >= 0
        assert lines["g1.a"]["attempt"] > 0
        assert not any("SECRET" in str(x.__dict__) for x in caplog.records)


class TestSlots:
    async def test_it_holds_no_more_than_it_has_slots_and_prefetches_one_batch(self) -> None:
        async with rig({"mock": MockBackend(step_ms=50)}, max_batch_size=2, max_batches=2) as r:
            jobs = [await r.submit(str(i), max_tokens=1 + i % 2 * 1000) for i in range(12)]
            most = 0
            while r.store.depth > 6:
                most = max([most, *map(len, r.store.held().values())])
                await asyncio.sleep(0.001)
            assert most <= 4
            await r.end(*[job for job in jobs[::2] if job.id in ("g1.0", "g1.2")])
            assert max(map(len, r.store.held().values())) <= 4

    async def test_while_every_place_is_busy_no_more_than_one_batch_waits(self) -> None:
        async with rig({"mock": MockBackend(step_ms=20)}, max_batch_size=4, max_batches=2) as r:
            busy = []
            for i in range(2):
                busy.append(await r.submit(f"busy{i}", max_tokens=1000 + i))
                await r.begun(busy[-1])
            for i in range(12):
                await r.submit(f"wait{i}", max_tokens=8)
            await wait_until(lambda: r.store.depth == 8, "one batch of four is taken ahead")
            await r.begun(busy[0], len(r.answer(busy[0]).tokens) + 3)
            assert r.store.depth == 8

    async def test_batches_do_not_block_one_another(self) -> None:
        async with rig({"mock": MockBackend(scripted=True)}, max_batch_size=4, max_batches=2) as r:
            hung = await r.submit("hung", "[[hang_after=1]]", max_tokens=7)
            await r.begun(hung)
            jobs = [await r.submit(str(i)) for i in range(20)]
            await r.end(*jobs)
            assert r.answer(hung).end is None

    async def test_only_one_blocking_wait_at_a_time(self) -> None:
        async with rig() as r:
            await r.end(*[await r.submit(str(i), max_tokens=1 + i % 3) for i in range(50)])
            assert r.store.num_waits_at_once == 1

    async def test_a_continuous_backend_needs_no_batch_slot(self) -> None:
        class Paused(Backend):
            async def stream(self, job: Job) -> AsyncIterator[str]:
                yield "x"
                await asyncio.Event().wait()

        async with rig({"mock": Paused()}, max_batch_size=4, max_batches=1) as r:
            for i in range(4):
                await r.begun(await r.submit(str(i)))


class TestCancel:
    async def test_a_running_job_ends_at_once_and_frees_its_slot(self) -> None:
        async with rig({"mock": MockBackend(step_ms=2)}, max_batch_size=1, max_batches=1) as r:
            job, after = await r.submit("a", max_tokens=100_000), await r.submit("b", max_tokens=2)
            await r.begun(job)
            assert await r.store.cancel(job.id, "client") == "marked"
            (done, _) = await r.end(job, after, timeout_s=1)
            assert isinstance(done.end, Done)
            assert done.end.finish_reason == "cancelled"
            assert done.end.usage.completion_tokens == len(done.tokens) > 0

    async def test_it_does_not_need_the_hint(self) -> None:
        async with rig({"mock": MockBackend(step_ms=2)}) as r:
            job = await r.submit("a", max_tokens=100_000)
            await r.begun(job)
            r.store._hints.clear()
            await r.store.cancel(job.id, "operator")
            await r.end(job, timeout_s=1.5)

    async def test_a_job_that_waits_in_the_batcher_is_cancelled_too(self) -> None:
        async with rig(window_s=30.0) as r:
            job = await r.submit("a")
            await wait_until(lambda: r.store.snapshot().jobs[job.id].state == "running", "it is claimed")
            await r.store.cancel(job.id, "client")
            (done,) = await r.end(job)
            assert isinstance(done.end, Done)
            assert done.tokens == ()

    async def test_a_deadline_that_passes_while_it_runs_is_an_error(self) -> None:
        async with rig({"mock": MockBackend(step_ms=5)}) as r:
            job = await r.submit("a", max_tokens=100_000, timeout_s=0.1)
            (done,) = await r.end(job, timeout_s=1)
            assert isinstance(done.end, Failed)
            assert done.end.code == "deadline_exceeded"
            assert len(done.tokens) > 2

    async def test_an_engine_that_hangs_does_not_keep_a_cancelled_job_or_its_batch_slot(self) -> None:
        async with rig({"mock": MockBackend(scripted=True)}, max_batches=1) as r:
            hung = await r.submit("a", "[[hang_after=1]]")
            await r.begun(hung)
            await r.store.cancel(hung.id, "client")
            await r.end(hung, await r.submit("b"))


class Rude(Backend):
    """Does what the prompt says, which no backend may do."""

    async def generate(self, batch: Batch) -> AsyncIterator[Event]:
        for claim in batch.claims:
            for event in self.events(claim):
                yield event
                await asyncio.sleep(0)

    def events(self, claim: Claim) -> Iterable[Event]:
        id, attempt, prompt = claim.job.id, claim.attempt, claim.job.text
        yield Tokens(id, attempt, 0, tokens=("a",))
        if prompt == "raise":
            raise RuntimeError("SECRET")
        bad: dict[str, Any] = {
            "gap": Tokens(id, attempt, 5, tokens=("b",)),
            "repeat": Tokens(id, attempt, 0, tokens=("b",)),
            "attempt": Tokens(id, attempt + 1, 1, tokens=("b",)),
            "bytes": Tokens(id, attempt, 1, tokens=(b"b",)),  # type: ignore[arg-type]
            "surrogate": Tokens(id, attempt, 1, tokens=("\ud800",)),
            "odd end": Done(id, attempt, 1, finish_reason="boredom"),  # type: ignore[arg-type]
            "surrogate end": Failed(id, attempt, 1, code="x", message="\ud800"),
            "foreign": Tokens("g1.other", attempt, 1, tokens=("b",)),
            "thing": object(),
        }
        if prompt in bad:
            yield bad[prompt]
        if prompt == "after":
            yield Done(id, attempt, 1, finish_reason="stop")
            yield Tokens(id, attempt, 1, tokens=("b",))
        if prompt == "fine":
            yield Done(id, attempt, 1, finish_reason="stop", tokens=("z",))


class TestRudeBackends:
    @pytest.mark.parametrize(
        "prompt",
        ["raise", "gap", "repeat", "attempt", "bytes", "surrogate", "odd end", "surrogate end", "thing", "silence"],
    )
    async def test_it_fails_its_job_and_corrupts_nothing(self, prompt: str) -> None:
        async with rig({"mock": Rude()}) as r:
            (done,) = await r.end(await r.submit("a", prompt))
            assert isinstance(done.end, Failed)
            assert done.end.code == "backend_error"
            assert "SECRET" not in done.end.message
            assert done.tokens == ("a",)
            (fine,) = await r.end(await r.submit("b", "fine"))
            assert fine.tokens == ("a", "z")

    async def test_a_repeated_end_and_a_foreign_id_are_ignored(self) -> None:
        async with rig({"mock": Rude()}) as r:
            (done, foreign) = await r.end(await r.submit("a", "after"), await r.submit("b", "foreign"))
            assert isinstance(done.end, Done)
            assert done.end.usage == Usage(1, 1), "usage is counted for a backend that leaves it out"
            assert isinstance(foreign.end, Failed)

    async def test_a_task_and_token_ids_that_the_backend_does_not_have_are_refused(self) -> None:
        """A gateway sends none; another producer may."""
        jobs = [
            Job(id="g1.a", model="mock", prompt="x", task="dream"),
            Job(id="g1.b", model="mock", inputs=((5, 67),)),
        ]
        async with rig({"mock": Rude()}) as r:
            for job in jobs:
                await r.store.submit(job, "g1", 0)
            ends = [one.end for one in await r.end(*jobs)]
        assert [isinstance(end, Failed) and end.code for end in ends] == ["unsupported_task", "unsupported_parameter"]

    async def test_a_missing_model_is_answered(self) -> None:
        async with rig() as r:
            (done,) = await r.end(await r.submit("a", model="other"))
            assert isinstance(done.end, Failed)
            assert done.end.code == "model_not_found"


class TestStore:
    async def test_a_write_that_failed_is_repeated_unchanged(self) -> None:
        async with rig({"mock": MockBackend(step_ms=2, chain=True)}) as r:
            job = await r.submit("a", max_tokens=100)
            await r.begun(job)
            r.store.is_away = True
            num = len(r.store.tried)
            await wait_until(lambda: len(r.store.tried) >= num + 3, "it tries again")
            r.store.is_away = False
            (done,) = await r.end(job)
            assert verify_chain(done.tokens) is None
            assert len(done.tokens) == 100
            assert r.store.tried[num + 1] == r.store.tried[num + 2], "the same bytes"

    @pytest.mark.parametrize("verb", ["wait", "take", "claim"])
    async def test_what_the_intake_is_refused_is_asked_for_again(
        self, verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with rig() as r:
            await r.end(await r.submit("a"))
            worker_id, allowed = r.worker.id, getattr(r.store, verb)
            refused: list[Any] = []

            async def refuse_twice(*args: Any) -> Any:
                if len(refused) == 2:
                    return await allowed(*args)
                refused.append(args)
                raise StoreUnavailable("refused")

            monkeypatch.setattr(r.store, verb, refuse_twice)
            for name in ("b", "c", "d"):
                await r.end(await r.submit(name))
            assert len(refused) == 2
            assert r.worker.id == worker_id, "the same tenure goes on"

    async def test_an_engine_far_ahead_of_the_store_is_held_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penstock.worker.outbox.MAX_PENDING", 100)
        async with rig() as r:
            job = await r.submit("a", max_tokens=50_000)
            await r.begun(job)
            r.store.is_away = True
            num = len(r.store.tried)
            await wait_until(lambda: len(r.store.tried) >= num + 2, "it tries again")
            r.store.is_away = False
            await r.begun(job, 1)
            assert max(len(getattr(event, "tokens", ())) for write in r.store.writes for event in write) <= 101
            await r.store.cancel(job.id, "client")
            await r.end(job)

    async def test_a_worker_that_starts_before_its_store_waits_unready(self) -> None:
        store = Store()
        store.is_away = True
        async with rig(store=store) as r:
            assert r.worker.why_not_ready()
            job = await r.submit("a")
            await asyncio.sleep(0)
            store.is_away = False
            await r.end(job)
            assert r.worker.why_not_ready() == []

    async def test_stopping_before_the_store_is_there_ends(self) -> None:
        store = Store()
        store.is_away = True
        async with rig(store=store):
            pass

    async def test_a_pool_that_serves_other_models_is_refused(self) -> None:
        store = Store()
        await store.enlist(WorkerInfo(id="w0", models={"other": Capabilities()}, num_slots=1, num_free=1))
        async with rig(store=store) as r:
            assert r.running is not None
            with pytest.raises(ConfigError, match="other"):
                await r.running

    async def test_refused_frames_drop_the_job_and_nothing_else(self) -> None:
        async with rig({"mock": MockBackend(step_ms=2)}) as r:
            fenced, other = await r.submit("a", max_tokens=1000), await r.submit("b", max_tokens=50)
            await r.begun(fenced)
            models = {"mock": MockBackend.capabilities}
            await r.store.enlist(WorkerInfo(id="thief", models=models, num_slots=1, num_free=1))
            with changing(r.store) as state:
                state.lists["thief"] = [fenced.id]
                state.jobs[fenced.id].attempt += 10
                state.jobs[fenced.id].worker = "thief"
            await r.end(other)
            await wait_until(lambda: r.store.held() == {"thief": [fenced.id]}, "it lets go of the fenced one")
            assert r.answer(fenced).end is None

    @pytest.mark.parametrize("verb", ["wait", "take", "claim"])
    async def test_what_is_refused_on_its_way_in_is_tried_again(
        self, verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store()
        real, num_refused = getattr(store, verb), 0

        async def refuse(*args: Any) -> Any:
            nonlocal num_refused
            if num_refused < 2:
                num_refused += 1
                raise StoreUnavailable("Redis refused it, with words that no list has")
            return await real(*args)

        monkeypatch.setattr(store, verb, refuse)
        async with rig({"mock": MockBackend()}, store) as r:
            (done,) = await r.end(await r.submit("a"))
            assert isinstance(done.end, Done)
            assert num_refused

    async def test_a_hand_back_that_is_refused_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store()
        hand_back, tried = store.hand_back, list[str]()

        async def refuse(worker_id: str, claims: Sequence[Claim]) -> None:
            tried.append(worker_id)
            if len(tried) == 1:
                raise StoreUnavailable("for now")
            await hand_back(worker_id, claims)

        monkeypatch.setattr(store, "hand_back", refuse)
        async with rig({"mock": MockBackend(step_ms=20)}, store) as r:
            await r.begun(await r.submit("a", max_tokens=100_000))
            r.worker.stop()
            r.worker.stop()
            assert r.running is not None
            await wait_until(r.running.done, "the worker has left")
            assert r.running.exception() is None
            assert (len(tried), store.depth) == (2, 1)

    async def test_one_that_cannot_be_reaped_does_not_block_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store()
        real, reaped = store.renew, list[str]()

        async def renew(info: WorkerInfo, running: Sequence[str]) -> Renewal:
            renewal = await real(info, running)
            return Renewal(is_lost=renewal.is_lost, held=renewal.held, dead=("first", "second"))

        async def reap(dead_worker_id: str) -> int:
            if dead_worker_id == "first":
                raise StoreUnavailable("its list is not what it should be")
            reaped.append(dead_worker_id)
            return 0

        monkeypatch.setattr(store, "renew", renew)
        monkeypatch.setattr(store, "reap", reap)
        async with rig({"mock": MockBackend()}, store):
            await wait_until(lambda: "second" in reaped, "the other one is reaped")

    async def test_an_id_in_its_list_that_it_does_not_know_is_claimed(self) -> None:
        async with rig() as r:
            job = await r.submit("a")
            await r.end(job)
            stray = Job(id="g1.stray", model="mock", prompt="p", sampling=Sampling(max_tokens=2))
            await r.store.submit(stray, "g1", 0)
            with changing(r.store) as state:
                state.queue.remove(stray.id)
                state.lists.setdefault(r.worker.id, []).append(stray.id)
            await r.end(stray, timeout_s=2)


class TestLease:
    async def test_a_dead_workers_jobs_go_on_here(self) -> None:
        store = Store(lease_s=0.6)
        backend = MockBackend(chain=True)
        dead = WorkerInfo(id="dead", models={"mock": backend.capabilities}, num_slots=1, num_free=1)
        await store.enlist(dead)
        job = Job(id="g1.a", model="mock", prompt="p", sampling=Sampling(max_tokens=8))
        await store.submit(job, "g1", 0)
        await store.take("dead", 1)
        (claim,) = await store.claim("dead", [job.id])
        await store.emit("dead", [Tokens(job.id, claim.attempt, 0, tokens=tuple(backend.expected(job)[:3]))])
        async with rig({"mock": backend}, store) as r:
            (done,) = await r.end(job, timeout_s=3)
            assert verify_chain(done.tokens) is None
            assert len(done.tokens) == 8
            assert done.attempt > claim.attempt

    async def test_a_lost_lease_means_starting_over_under_a_new_id(self) -> None:
        async with rig({"mock": MockBackend(step_ms=5, chain=True)}) as r:
            job = await r.submit("a", max_tokens=300)
            await r.begun(job)
            old = r.worker.id
            r.store.expire(old)
            await wait_until(lambda: r.worker.id not in ("", old), "a new tenure")
            (done,) = await r.end(job)
            assert verify_chain(done.tokens) is None
            assert len(done.tokens) == 300
            assert old not in r.store.snapshot().lists

    async def test_a_worker_whose_lease_may_have_lapsed_claims_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Deaf(Store):
            num_refused = 0
            is_deaf = False

            async def renew(self, info: WorkerInfo, running: Sequence[str]) -> Renewal:
                if self.is_deaf:
                    self.num_refused += 1
                    raise StoreUnavailable("of all commands this one does not come through")
                return await super().renew(info, running)

        monkeypatch.setattr(tenure, "LEASE_S", 0.3)  # of the worker alone: for the store it goes on
        store = Deaf()
        async with rig({"mock": MockBackend()}, store) as r:
            await r.end(await r.submit("before"))
            store.is_deaf = True
            await wait_until(lambda: store.num_refused > 1, "the lease has not been renewed for so long")
            job = await r.submit("after")
            await wait_until(lambda: store.num_refused > 3, "there was time to take it")
            assert r.log(job) == []
            store.is_deaf = False
            await r.end(job)

    @pytest.mark.parametrize("lost", ["take", "emit", "renew", "renew in a thread", "gather"])
    async def test_a_bug_in_one_of_its_loops_ends_the_worker(self, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*args: Any) -> Any:
            raise RuntimeError("a bug")

        store = Store()
        if lost == "gather":
            monkeypatch.setattr(tenure.Tenure, "_gather", fail)
        elif lost == "renew in a thread":
            second = Store()
            monkeypatch.setattr(second, "renew", fail)
            monkeypatch.setattr(store, "clone_for_thread", lambda: second)
        else:
            monkeypatch.setattr(store, lost, fail)
        async with rig({"mock": MockBackend()}, store) as r:
            await r.submit("a")
            assert r.running is not None
            await wait_until(r.running.done, "the worker ends")
            assert str(r.running.exception()) == "a bug"

    async def test_an_engine_that_hangs_ends_the_worker_and_is_not_renewed(self) -> None:
        stalls: list[float] = []
        async with rig({"mock": MockBackend(scripted=True)}, engine_stall_s=0.6, on_stall=stalls.append) as r:
            job = await r.submit("a", "[[hang_after=1]]")
            await r.begun(job)
            worker = r.worker.id
            await wait_until(lambda: stalls, "the stall is noticed")
            lapses_at = r.store.snapshot().workers[worker].lapses_at
            assert stalls[0] >= 0.6
            await wait_until(lambda: lapses_at + 0.7 < time.time() + LEASE_S, "two renewals are due")
            assert r.store.snapshot().workers[worker].lapses_at == lapses_at
            assert len(stalls) == 1

    async def test_loading_an_engine_is_no_stall(self) -> None:
        class Slow(MockBackend):
            async def start(self) -> None:
                await asyncio.sleep(0.5)  # weights are read, kernels compiled

        stalls: list[float] = []
        enlisted: list[str] = []
        store = Store()
        async with rig(
            {"mock": Slow()}, store, engine_stall_s=0.2, on_stall=stalls.append, on_enlist=enlisted.append
        ) as r:
            job = await r.submit("a")
            assert (store.snapshot().workers, enlisted) == ({}, []), (
                "no lease, and so nothing to wait for, before it is loaded"
            )
            assert r.worker.why_not_ready() != []
            (answer,) = await r.end(job)
            assert isinstance(answer.end, Done)
            assert enlisted == [r.worker.id]
        assert stalls == []

    async def test_without_anybody_to_end_the_process_a_stall_is_raised(self) -> None:
        async with rig({"mock": MockBackend(scripted=True)}, engine_stall_s=0.6) as r:
            await r.submit("a", "[[hang]]")
            assert r.running is not None
            with pytest.raises(BackendError, match="no progress"):
                await asyncio.wait_for(r.running, LONG_S)

    async def test_the_lease_lives_in_a_thread_where_the_transport_has_a_second_connection(self) -> None:
        class TwoLoops(Store):
            num_closed = 0

            def clone_for_thread(self) -> Store:
                self.second = Second()
                self.second._workers = self._workers
                self.second._lists = self._lists
                self.second._jobs = self._jobs
                return self.second

        class Second(Store):
            num_renewals = 0
            num_closed = 0

            async def renew(self, info: WorkerInfo, running: Sequence[str]) -> Renewal:
                self.num_renewals += 1
                return await super().renew(info, running)

            async def close(self) -> None:
                self.num_closed += 1

        store = TwoLoops()
        async with rig({"mock": MockBackend(step_ms=2)}, store) as r:
            job = await r.submit("a", max_tokens=100_000)
            await r.begun(job)
            store._hints.clear()
            await wait_until(lambda: store.second.num_renewals, "a renewal in the thread")
            await store.cancel(job.id, "client")
            await r.end(job)
        assert store.second.num_closed == 1

    def test_progress_is_judged_batch_by_batch(self) -> None:
        progress = EngineProgress()
        assert progress.stalled_s({}, 0.0) == 0.0
        assert progress.stalled_s({1: 0, 2: 0}, 10.0) == 0.0
        assert progress.stalled_s({1: 5, 2: 0}, 12.0) == 2.0
        assert progress.stalled_s({1: 5}, 13.0) == 1.0, "a batch that has left, or waits for the store, does not hang"
        assert progress.stalled_s({1: 5, 2: 0}, 14.0) == 2.0


class TestLeaving:
    async def test_what_runs_may_finish_and_what_waits_goes_back(self) -> None:
        async with rig({"mock": MockBackend(step_ms=10)}, max_batch_size=1, max_batches=1, drain_s=5) as r:
            running, waiting = await r.submit("a", max_tokens=20), await r.submit("b")
            await r.begun(running)
            await wait_until(lambda: len(r.store.held().get(r.worker.id, ())) <= 2, "at most one ahead")
            r.worker.stop()
            await wait_until(lambda: r.store.depth == 1, "the waiting one is back in the queue")
            assert r.answer(running).end is None
            assert r.worker.why_not_ready() == ["draining"]
            await r.end(running)
            assert r.running is not None
            await asyncio.wait_for(r.running, LONG_S)
            assert r.store.snapshot().jobs[waiting.id].state == "queued"
            assert r.store.held() == {}
            assert (await r.store.overview()).workers == ()

    async def test_what_cannot_finish_goes_back_oldest_first_and_loses_nothing(self) -> None:
        store = Store()
        backend = MockBackend(step_ms=5, chain=True)
        async with rig({"mock": backend}, store, drain_s=0.05) as r:
            jobs = [await r.submit(str(i), max_tokens=100) for i in range(5)]
            await r.begun(jobs[-1], 3)
            r.worker.stop()
            assert r.running is not None
            await asyncio.wait_for(r.running, LONG_S)
            assert store.snapshot().queue == [job.id for job in jobs]
            assert all(store.snapshot().jobs[job.id].num_deaths == 0 for job in jobs)
            assert all(store.snapshot().jobs[job.id].state == "queued" for job in jobs)
            assert len(r.answer(jobs[0]).tokens) > 3
        async with rig({"mock": MockBackend(chain=True)}, store) as r:
            for done in await r.end(*jobs):
                assert verify_chain(done.tokens) is None
                assert len(done.tokens) == 100
        assert all(store.snapshot().jobs[job.id].num_deaths == 0 for job in jobs)

    async def test_a_second_signal_hands_back_at_once(self) -> None:
        async with rig({"mock": MockBackend(step_ms=5)}, drain_s=60) as r:
            job = await r.submit("a", max_tokens=100_000)
            await r.begun(job)
            r.worker.stop()
            r.worker.stop()
            assert r.running is not None
            await asyncio.wait_for(r.running, LONG_S)
            assert r.store.snapshot().queue == [job.id]

    async def test_two_workers_share_and_one_leaves_without_a_loss(self) -> None:
        store = Store()
        backends = [{"mock": MockBackend(step_ms=2, chain=True)} for _ in range(2)]
        async with rig(backends[0], store, max_batch_size=4, drain_s=0) as one, rig(backends[1], store) as two:
            jobs = [await one.submit(str(i), max_tokens=40) for i in range(40)]
            await one.begun(jobs[0])
            one.worker.stop()
            for done in await two.end(*jobs):
                assert verify_chain(done.tokens) is None
                assert len(done.tokens) == 40


class TestFaults:
    def test_nothing_happens_unless_it_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PENSTOCK_TEST_CRASH", raising=False)
        assert crash_points_from() is no_crash_points

    def test_the_named_passage_of_the_named_point_kills(self, monkeypatch: pytest.MonkeyPatch) -> None:
        killed: list[int] = []
        monkeypatch.setattr("os.kill", lambda pid, number: killed.append(number))
        monkeypatch.setenv("PENSTOCK_TEST_CRASH", "after_claim:2,mid_step:1:stop")
        reach = crash_points_from()
        reach("after_claim")
        assert killed == []
        reach("after_claim")
        reach("after_claim")
        assert killed == [9]
        reach("mid_step")
        assert killed == [9, 19]

    @pytest.mark.parametrize("text", ["nowhere", "mid_step:x", "mid_step:1:explode"])
    def test_nonsense_stops_the_start(self, text: str) -> None:
        with pytest.raises(ConfigError, match="PENSTOCK_TEST_CRASH"):
            crash_points_from(text)

    async def test_every_point_is_passed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        passed: list[str] = []
        monkeypatch.setattr("penstock.worker.worker.crash_points_from", lambda: passed.append)
        async with rig() as r:
            await r.end(await r.submit("a", max_tokens=3))
            await wait_until(lambda: "after_final" in passed, "the last point")
        assert set(passed) == set(POINTS)
        assert passed[:3] in (["after_pop", "after_claim", "mid_step"], ["after_pop", "after_claim", "before_final"])
        assert passed[-1] == "after_final"


class Broken(MockBackend):
    async def start(self) -> None:
        raise RuntimeError("no GPU")


class Counted(MockBackend):
    num_starts = 0

    async def start(self) -> None:
        self.num_starts += 1


async def test_a_backend_that_does_not_start_is_reported_with_its_model() -> None:
    shared = Counted()
    backends = {"one": shared, "alias": shared, "two": Broken()}
    with pytest.raises(RuntimeError, match="no GPU") as caught:
        await Worker(MemoryTransport(), backends).run()
    assert caught.value.__notes__ == ["The backend of the model two did not start."]
    assert shared.num_starts == 1


class Remote(MockBackend):
    """Its engine is elsewhere."""

    num_up = 1

    def live_engines(self) -> Engines:
        return Engines(self.num_up, 1)


async def test_a_worker_announces_the_engines_of_its_models_and_reports_those_that_are_down() -> None:
    remote = Remote()
    async with rig(backends={"far": remote, "near": MockBackend()}) as r:

        def announced() -> dict[str, Engines]:
            leases = r.store.snapshot().workers.values()
            return next((lease.info.engines for lease in leases if lease.info is not None), {})

        await wait_until(lambda: announced() == {"far": Engines(1, 1)}, "it is announced")
        assert r.worker.why_degraded() == []
        remote.num_up = 0
        await wait_until(lambda: announced() == {"far": Engines(0, 1)}, "the change is announced")
        assert r.worker.why_degraded() == ["no engine is up for far"]
        assert r.worker.why_not_ready() == []
