"""The batches that a worker runs: each in a task of its own, from its backend to the outbox.

A backend is not trusted: an exception, an early end, an event out of sequence become that job's `Failed`, and the
log never sees them. Knows nothing of leases, slots or the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from functools import partial
from itertools import count

import msgspec

from penstock.backends.base import Backend, failure
from penstock.errors import BackendError
from penstock.event import Done, Event, Failed, Terminal, Tokens, Usage
from penstock.job import Batch
from penstock.worker.outbox import Outbox
from penstock.worker.running_job import Run, RunningJob

logger = logging.getLogger("penstock.worker")

CANCEL_S = 5.0


class Runs:
    """`finish(job, end)` is called for every job's end, `on_ran()` when a batch has left its batch slot."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        max_batches: int,
        outbox: Outbox,
        finish: Callable[[RunningJob, Terminal], None],
        on_ran: Callable[[], None],
    ) -> None:
        self._backends = backends
        self._max_batches = max_batches
        self._outbox = outbox
        self._finish = finish
        self._on_ran = on_ran
        self._runs: set[Run] = set()
        self._numbers = count()

    @property
    def num_free(self) -> int:
        """Free batch slots. Continuous backends need none: their jobs join at any step."""
        return self._max_batches - sum(run.needs_batch_slot for run in self._runs)

    def start(self, batch: Batch, jobs: dict[str, RunningJob], now: float) -> None:
        backend = self._backends[batch.model]
        needs_batch_slot = not backend.capabilities.continuous
        run = Run(next(self._numbers), batch, jobs, needs_batch_slot, backend.has_own_timeouts)
        for job in jobs.values():
            job.started_at, job.run = now, run
        self._runs.add(run)
        run.task = asyncio.create_task(self._run(run))
        run.task.add_done_callback(partial(self._ran, run))

    def leave(self, job: RunningJob) -> None:
        """A job has ended outside its engine: cancel its batch if no job of it is left."""
        run = job.run
        if run is not None and not run.jobs and run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()

    def tasks(self) -> set[asyncio.Task[None]]:
        return {run.task for run in self._runs if run.task is not None}

    def marks(self) -> dict[int, int]:
        """For each batch in an engine whose silence is a hang, the number of events it has yielded. Safe to call from
        the lease's thread."""
        return {run.number: run.num_events for run in list(self._runs) if run.is_in_engine and not run.has_own_timeouts}

    def usage(self, job: RunningJob) -> Usage:
        """The usage of a job that ends now."""
        try:
            num_prompt = self._backends[job.claim.job.model].count_prompt_tokens(job.claim.job)
        except Exception as error:
            logger.error("the backend cannot count: %s", type(error).__name__, extra={"request_id": job.id})
            num_prompt = 0
        return Usage(num_prompt, job.num if job.claim.job.generates else 0)

    def _ran(self, run: Run, task: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        run.task = None  # see "No cycles": run → task → its callback → run
        self._on_ran()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a batch has ended in a bug", exc_info=error)
            self._fail_all(run, BackendError("The batch of this request has failed."))

    async def _run(self, run: Run) -> None:
        jobs, outbox = run.jobs, self._outbox
        events: AsyncIterator[Event] | None = None
        error: Exception = BackendError("The model's backend ended without finishing this request.")
        try:
            events = self._backends[run.batch.model].generate(run.batch)
            accept, add, find = self._accept, outbox.add, jobs.get
            async for event in events:
                run.num_events += 1
                job = find(event.job_id)
                if job is None:
                    continue  # the job has ended here; the backend may notice that a little later
                if type(event) is Tokens and job.takes(event):
                    add(job, event.tokens)
                else:
                    accept(job, event)
                    if not jobs:
                        break
                if outbox.is_full:
                    run.is_in_engine = False
                    await outbox.room()
                    run.is_in_engine = True
        except Exception as raised:
            error = raised
        finally:
            await _close(events)
        task = asyncio.current_task()
        if task is None or not task.cancelling():  # else other workers may run the jobs that are left
            self._fail_all(run, error)

    def _accept(self, job: RunningJob, event: Event) -> None:
        """Add the event to the outbox; fail the job instead if the event would corrupt the log."""
        if type(event) is Tokens:
            fault = job.fault_of(event)
            if fault is None:
                job.num += len(event.tokens)
                if event.tokens:
                    self._outbox.add(job, event.tokens)
                return
        elif isinstance(event, Done | Failed):
            fault = job.fault_of(event)
            if fault is None:
                job.num = event.end
                if isinstance(event, Done) and event.usage == Usage():
                    event = msgspec.structs.replace(event, usage=self.usage(job))
                self._finish(job, event)
                return
        else:
            fault = f"yielded {type(event).__name__}"
        logger.error("the backend %s", fault, extra={"request_id": job.id, "model": job.claim.job.model})
        self._finish(job, job.failed(BackendError("The model's backend broke its contract.")))
        job.claim.cancel("operator")  # so that the engine stops working on it

    def _fail_all(self, run: Run, error: Exception) -> None:
        for job in list(run.jobs.values()):
            self._finish(job, job.failed(failure(error, job.claim)))


async def _close(events: AsyncIterator[Event] | None) -> None:
    """Close a backend's generator, which may not be exhausted."""
    aclose = getattr(events, "aclose", None)
    if aclose is None:
        return
    try:
        await aclose()
    except Exception as error:
        logger.error("the backend cannot be closed: %s", type(error).__name__)


async def cancel_all(tasks: Collection[asyncio.Task[object]]) -> None:
    """Cancel, and wait for a limited time: an engine that ignores cancellation ends with the process."""
    for task in tasks:
        task.cancel()
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=CANCEL_S)
        if pending:
            logger.error("%d tasks do not end", len(pending))
