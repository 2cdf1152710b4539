"""How a stream is repaired: read from the log, given back to a store that lost it, restored where the log is behind.

Rule numbers are those of `docs/protocol.md`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from penstock.errors import DeadlineExceeded, InternalError, PenstockError, RequestNotFound, StoreUnavailable
from penstock.event import Done, Event, Failed, Started, Terminal, Tokens, fold
from penstock.gateway.relay.keeper import Keeper
from penstock.gateway.relay.records import outcome_of
from penstock.gateway.relay.stream import RelayStream
from penstock.job import Job
from penstock.transports.base import LATE, EndReason, GatewayStore, Record

logger = logging.getLogger(__name__)

MAX_WHILE_READING = 1024


class Repairer:
    """Accepts only what is surely next, and repairs the rest. `on_end(stream)` is called once for every stream.

    `is_stranded(stream, record)` judges whether a job that has not ended is likely in no list (rule 8).

    The relay owns the table; this knows one stream at a time.
    """

    def __init__(
        self,
        gateway_id: str,
        store: GatewayStore,
        keeper: Keeper,
        on_end: Callable[[RelayStream], None],
        is_stranded: Callable[[RelayStream, Record], bool],
        on_log_read: Callable[[str], None],
        store_ms: Callable[[], int],
    ) -> None:
        self._gateway_id = gateway_id
        self._store = store
        self._keeper = keeper
        self._on_end = on_end
        self._is_stranded = is_stranded
        self._on_log_read = on_log_read
        self._store_ms = store_ms
        self._tasks: set[asyncio.Task[object]] = set()

    def on_event(self, stream: RelayStream, event: Event) -> None:
        """A published event: only what is surely next is believed; all else is looked up in the log."""
        if stream.end is not None or event.attempt < stream.attempt:
            return
        if stream.waiting_frames is not None:
            if len(stream.waiting_frames) < MAX_WHILE_READING:
                stream.waiting_frames.append(event)
        elif not stream.is_trusted:
            self.request_log(stream, "untrusted")
        elif event.attempt > stream.attempt and not isinstance(event, Started):
            self.request_log(stream, "attempt")  # rule 4
        else:
            self._fold(stream, event)

    def request_log(self, stream: RelayStream, reason: str) -> None:
        """Read this stream's log; frames that arrive meanwhile wait. One read at a time."""
        if stream.waiting_frames is None:
            stream.waiting_frames = deque()
            self._on_log_read(reason)
            self.spawn(self._read_and_repair(stream))

    def learn(self, stream: RelayStream, record: Record) -> None:
        """This record is shown to a client: fold it into its stream, so that it stays known if the store loses it."""
        self.catch_up(stream, record)
        if stream.end is None:
            self.request_log(stream, "lookup")

    async def mark_read(self, stream: RelayStream) -> None:
        """Call it before a client gets a token: from here on no worker begins the answer again.

        What was begun again before that is dropped here. Raises `StoreUnavailable`; then no client may get a token.
        """
        if stream.is_read or stream.end is not None:
            return
        stream.job = replace(stream.job, stream=True)  # first: what is given back meanwhile is given back as read
        attempt = await self._store.mark_read(stream.job.id)
        if attempt > stream.attempt:
            after = (stream.attempt, len(stream.tokens)) if stream.tokens else None
            record = await self._store.read(stream.job.id, after, job=stream.job)
            if record is not None:
                self.catch_up(stream, record)
        stream.is_read = True

    def catch_up(self, stream: RelayStream, record: Record) -> None:
        """Fold in the events of the log."""
        for event in record.events:
            if stream.end is None and event.attempt >= stream.attempt and event.seq <= len(stream.tokens):
                self._fold(stream, event)

    def _fold(self, stream: RelayStream, event: Event) -> None:
        """Fold an event of the attempt known, or the `Started` of a newer one."""
        have = len(stream.tokens)
        if isinstance(event, Started) and event.attempt == stream.attempt:
            return  # repeated or late: it changes nothing
        if not stream.is_read and event.attempt > stream.attempt and event.seq < have:
            stream.drop(event.seq)  # no client has those tokens: what the log has now is the answer
            have = event.seq
        if event.seq > have:
            self.request_log(stream, "gap")
        elif isinstance(event, Started) and event.seq < have:
            # The log is behind the client (rule 5): ignore that attempt; a new one continues after the relayed tokens.
            stream.attempt, stream.is_restoring = event.attempt + 1, True
            self.spawn(self._restore(stream, event.attempt))
        elif event.end > have or (event.end == have and not isinstance(event, Tokens)) or _gives_up(event):
            stream.accept(event, time.monotonic())
            if stream.end is not None:
                self._on_end(stream)

    async def _read_and_repair(self, stream: RelayStream) -> None:
        try:
            if stream.is_followed and not stream.is_trusted:  # a store that was rolled back may not know our read
                await self._store.adopt(stream.job.id, self._gateway_id, is_read=stream.job.stream)
            after = (stream.attempt, len(stream.tokens)) if stream.tokens else None
            record = await self._store.read(stream.job.id, after, job=stream.job)
            stream.is_trusted = True
            if stream.end is not None:  # before this read: what the store may have lost of that is given back
                await self._keeper.check_one(stream.job.id)
            elif record is None:
                await self._resubmit(stream)
            else:
                stream.cancel = stream.cancel or record.cancel or None
                self.catch_up(stream, record)
                if stream.end is not None and record.state != "done":  # by a frame that cannot be read: it still runs
                    await self._store.cancel(stream.job.id, "operator", self._gateway_id)
                elif stream.end is None and not stream.is_restoring:
                    await self._judge(stream, record)
        except StoreUnavailable:
            stream.is_trusted, stream.num_asked = False, 0  # silence asks again, and soon
        except PenstockError as error:  # the store holds what this gateway cannot read: asking again changes nothing
            self._end(stream, error)
        finally:
            waiting, stream.waiting_frames = stream.waiting_frames or (), None
            for event in waiting:
                self.on_event(stream, event)

    async def _judge(self, stream: RelayStream, record: Record) -> None:
        """Repair what reading the log has not."""
        if record.state == "done":
            await self._accept_end(stream)
            if stream.end is None:
                self._end(stream, InternalError("The end of this request is missing from its log."))
        elif stream.cancel is not None and not record.cancel:  # it was cancelled, and the store was rolled back
            await self._store.cancel(stream.job.id, stream.cancel)
        elif record.attempt < stream.attempt:  # the store was rolled back: frames of the worker it names are ignored
            await self._give_back(stream)
        elif self._is_stranded(stream, record) and await self._store.requeue_if_missing(stream.job.id):
            logger.warning("pushed again: it was in no list", extra={"request_id": stream.job.id})

    def _end(self, stream: RelayStream, error: PenstockError) -> None:
        """The rest of the answer cannot be known: end it in `error` now."""
        if stream.end is None:
            stream.fail(error, time.monotonic())
            stream.is_ended = True
            self._on_end(stream)

    async def _resubmit(self, stream: RelayStream) -> None:
        """The store has lost this request (rules 1, 5, 13): give it back what the client has."""
        job = stream.job
        if stream.end is not None:
            return
        if await self._keeper.is_deleted(job.id):
            self._end(stream, RequestNotFound("The request was deleted.", param="request_id"))
            return
        if job.once:
            await self._keeper.bind(job, job.timeout_s + self._keeper.retention_of(job))
        if stream.cancel is not None:
            await self._end_cancelled(stream, stream.cancel)
            return
        logger.warning("resubmitted", extra={"request_id": stream.job.id, "num_tokens": len(stream.tokens)})
        if stream.tokens:
            await self._give_back(stream)
        else:
            before = stream.attempt
            stream.attempt = self._highest_attempt(stream) + 1
            try:
                await self._store.submit(_rest(stream), self._gateway_id, 0, floor=stream.attempt, front=True)
            except BaseException:
                stream.attempt = before
                raise

    async def _give_back(self, stream: RelayStream) -> None:
        """Make the relayed tokens the whole log."""
        before, tokens = stream.attempt, list(stream.tokens)
        highest = self._highest_attempt(stream)
        stream.attempt = highest + 1
        is_given = False
        try:
            is_given = await self._store.restore(_rest(stream), self._gateway_id, tokens, highest)
        finally:
            if not is_given:
                stream.attempt = before

    def _highest_attempt(self, stream: RelayStream) -> int:
        """A number that no attempt so far exceeds: an attempt is at least the store's clock when it began.

        Frames of an attempt that the store has lost may still be on their way, and this gateway may not have heard of
        that attempt. They are not part of the log that the store is given.
        """
        return max(stream.attempt, self._store_ms())

    async def _end_cancelled(self, stream: RelayStream, reason: EndReason) -> None:
        """Its cancellation was requested, and the store has lost that with the request: end it all the same."""
        now = time.monotonic()
        end: Terminal = Done(stream.job.id, stream.attempt, len(stream.tokens), finish_reason="cancelled")
        if reason == "deadline":
            end = Failed.of(stream.job.id, stream.attempt, len(stream.tokens), DeadlineExceeded(LATE))
        outcome = outcome_of(stream, end, self._keeper.retention_of(stream.job), now)
        if await self._store.restore_end(outcome, self._gateway_id):
            await self._accept_end(stream)

    async def _restore(self, stream: RelayStream, short_attempt: int) -> None:
        try:
            tokens = list(stream.tokens)
            if not await self._store.restore(_rest(stream), self._gateway_id, tokens, short_attempt):
                await self._accept_end(stream)
                stream.is_restoring = False
                self.request_log(stream, "restore")
        except StoreUnavailable:
            stream.attempt = short_attempt - 1  # nothing may have happened: when the log is read it tries again
            stream.is_trusted = False
        except PenstockError as error:
            self._end(stream, error)
        finally:
            stream.is_restoring = False

    async def _accept_end(self, stream: RelayStream) -> None:
        """An attempt that is ignored here has ended: accept its end if its log starts with what was relayed."""
        record = await self._store.read(stream.job.id, job=stream.job)
        if record is not None and stream.end is None:
            said = fold(record.events)
            if said.end is not None and list(said.tokens[: len(stream.tokens)]) == stream.tokens:
                stream.attempt = said.attempt
                self.catch_up(stream, record)

    # ── background tasks ─────────────────────────────────────────────────────────────────────────────────────────

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def unfollow(self, job_id: str) -> None:
        """Stop receiving the frames of another gateway's request."""
        self.spawn(self._unfollow(job_id))

    async def _unfollow(self, job_id: str) -> None:
        try:
            await self._store.unfollow(job_id)
        except StoreUnavailable:
            return  # a new subscription does not ask for it again

    async def drain(self, timeout_s: float = 2.0) -> None:
        """Wait for what is on its way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the relay failed", exc_info=task.exception())


def _gives_up(event: Event) -> bool:
    """It ends the request at any place in the log, also behind what was relayed."""
    return isinstance(event, Failed) or (isinstance(event, Done) and event.finish_reason == "cancelled")


def _rest(stream: RelayStream) -> Job:
    """The job with the time that it has left."""
    return replace(stream.job, timeout_s=max(1.0, stream.deadline_at - time.monotonic()))
