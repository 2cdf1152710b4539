"""The streams that a gateway holds open, fed by the channel and repaired from the log.

Pub/sub is the fast path and the log is the truth: `repair.py` decides which of its frames count. Whole answers and
streams are the same `RelayStream`, and it may have any number of readers, now or later: what happens when the last one
leaves is the job's `on_disconnect`. What has ended here is remembered for a while (`keeper.py`), because the store may
lose it. Knows nothing of HTTP; rule numbers are those of `docs/protocol.md`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from penstock.errors import DeadlineExceeded, InvalidRequest, Overloaded, PenstockError, StoreUnavailable
from penstock.event import Done, Event, Failed, Tokens
from penstock.gateway.pool import PoolView
from penstock.gateway.relay.keeper import Keeper
from penstock.gateway.relay.look_up import LookUp
from penstock.gateway.relay.patience import Patience
from penstock.gateway.relay.records import is_dead, num_tokens, stream_of
from penstock.gateway.relay.repair import Repairer
from penstock.gateway.relay.stream import Reader, RelayStream, StreamMeter, Turn
from penstock.gateway.relay.table import Budget, StreamTable
from penstock.gateway.relay.unwanted import Canceller
from penstock.job import Job
from penstock.transports.base import LATE, NO_SHARE, CancelOutcome, EndReason, GatewayStore, Record
from penstock.transports.quota import Share

WATCH_S = 0.25
DELIVERED_RETENTION_S = 10.0


class Relay:
    """All open streams of one gateway. `deliver`, `invalidate_all` and `hinted` are what its store calls.

    `has_lease()`: this gateway's lease holds, so that others take it for alive; without it nothing is given up.
    `pool`: where the gateway's looks at its pool are seen.
    """

    def __init__(
        self,
        gateway_id: str,
        store: GatewayStore,
        *,
        max_depth: int,
        share: Share = NO_SHARE,
        no_worker_grace_s: float = 10.0,
        resume_window_s: float = 30.0,
        retention_s: float = 60.0,
        pool: PoolView | None = None,
        on_log_read: Callable[[str], None] = lambda reason: None,
        has_lease: Callable[[], bool] = lambda: True,
    ) -> None:
        self.gateway_id = gateway_id
        self._store = store
        self._max_depth = max_depth
        self._share = share
        self._has_lease = has_lease
        self.keeper = Keeper(gateway_id, store, retention_s, on_loss=lambda: self._read_again("lost"))
        pool = pool or PoolView()
        self._patience = Patience(self, pool, no_worker_grace_s, resume_window_s, has_lease)
        self._repairer = Repairer(
            gateway_id, store, self.keeper, self._ended, self._patience.is_stranded, on_log_read, pool.store_ms
        )
        self._canceller = Canceller(gateway_id, store)
        self._turn = Turn()
        self._table = StreamTable()
        self._streams = self._table.streams
        self.find = self._table.find
        self.named = self._table.named
        self.may = Budget().may
        lookup = LookUp(gateway_id, store, self._table, self.keeper, self._repairer, self._patience)
        self.look_up = lookup.look_up
        self.known = lookup.known
        self.request_log = self._repairer.request_log

    def __len__(self) -> int:
        return len(self._streams)

    # ── readers come and go ──────────────────────────────────────────────────────────────────────────────────────

    async def open(self, job: Job, meter: StreamMeter | None = None) -> Reader:
        """Submit `job`. Listening comes before speaking: its stream is known before it is pushed."""
        stream = RelayStream(job, meter, time.monotonic())
        reader = self.read(stream)
        try:
            with self._table.hold(stream):
                try:
                    await self._store.submit(job, self.gateway_id, self._max_depth, share=self._share)
                except StoreUnavailable:
                    if stream.end is None:
                        raise
                    # Its whole answer is here already, and counted: only the reply to the submit was lost.
        except BaseException as error:
            if not isinstance(error, Overloaded):  # its outcome is unknown: it may be queued without a reader
                self._repairer.spawn(self._let_go(stream))
            raise
        return reader

    async def attach(self, job_id: str, record: Record, after: int = 0, *, is_read: bool = True) -> RelayStream:
        """The stream of a request that this gateway may not hold yet: subscribe, adopt, read, in this order (rule 11).

        `record` is what the caller has read of it, to judge whether it may be seen. `after`: the tokens that its
        client has; `InvalidRequest` if there have never been so many. `is_read`: its client gets tokens before the end.
        """
        held = await self.find(job_id)
        if after > (num := num_tokens(record, held)):
            await self.keeper.make_sure()
            message = f"This position is behind {after} tokens, and the request has {num} so far."
            raise InvalidRequest(message, param="Last-Event-ID")
        if held is not None:
            if is_read:
                await self._repairer.mark_read(held)
            return held
        stream = stream_of(record)
        if record.state == "done":
            self._repairer.catch_up(stream, record)
            return stream
        stream.is_followed = job_id.partition(".")[0] != self.gateway_id
        stream.is_trusted = False
        stream.left_at = time.monotonic()
        self._repairer.catch_up(stream, record)  # so that only later entries are read once more
        with self._table.hold(stream):
            if stream.is_followed:
                await self._store.follow(job_id)
            await self._store.adopt(job_id, self.gateway_id, is_read=stream.job.stream)
            if is_read:
                await self._repairer.mark_read(stream)
        self._repairer.request_log(stream, "attach")
        return stream

    def read(self, stream: RelayStream, after: int = 0) -> Reader:
        """A reader of what comes after `after` tokens."""
        reader = Reader(stream, self._turn, after)
        stream.readers.append(reader)
        stream.left_at = 0.0
        return reader

    def leave(self, reader: Reader, *, is_delivered: bool) -> None:
        """The reader is done, or gone. Of several, only the last one's leaving counts. Safe to repeat."""
        stream = reader.stream
        if reader not in stream.readers:
            return
        stream.readers.remove(reader)
        if stream.readers:
            return
        if stream.is_ended:
            self._remove(stream)
            if stream.job.retention_s is None:  # else it has been weighed at its end
                is_retired = is_delivered and not is_dead(stream)
                if is_retired:
                    self._store.retire(stream.job.id, DELIVERED_RETENTION_S)
                    self.keeper.ended.delivered(stream.job.id, time.monotonic() + DELIVERED_RETENTION_S)
                self.keeper.weigh(stream, DELIVERED_RETENTION_S if is_retired else None)
        elif stream.job.on_disconnect == "cancel":
            self.abandon(stream)
        elif stream.end is not None:  # set locally: another gateway records the real end
            self._remove(stream)
        else:
            stream.left_at = time.monotonic()

    def abandon(self, stream: RelayStream) -> None:
        """It has no reader and will get none here: cancel it, unless another gateway has readers."""
        self._remove(stream)
        self._repairer.spawn(self._let_go(stream))

    async def _let_go(self, stream: RelayStream) -> None:
        """This gateway does not hear its end any more, so it is weighed as it is now."""
        if await self._canceller.cancel(stream.job.id, "client") not in ("owned", None):
            self.keeper.weigh(stream, None)

    async def cancel(self, job_id: str, reason: EndReason) -> CancelOutcome:
        """End it, whichever gateway holds it. Its owner repeats the request to end it if the store loses it."""
        stream = self._streams.get(job_id)
        outcome = await self._store.cancel(job_id, reason)
        if stream is not None and stream.end is None:
            self.hinted(job_id, reason)
            if outcome == "gone":
                self._repairer.request_log(stream, "cancel")
                return "marked"
        return outcome

    async def delete(self, job: Job) -> bool:
        """Leave nothing of a request that has ended, here and in the store. False if it has not ended."""
        if not await self._store.delete(job):
            return False
        stream = self._streams.get(job.id)
        if stream is not None:  # who reads it still may read it to its end
            self._remove(stream)
        self.keeper.forget(job.id)
        if job.once:
            await self._store.unbind_key(job)
        return True

    # ── what the store calls ─────────────────────────────────────────────────────────────────────────────────────

    def deliver(self, event: Event) -> None:
        """A published event."""
        stream = self._streams.get(event.job_id)
        if stream is not None:
            if type(event) is Tokens and stream.take(event):
                return
            if not stream.is_ended:
                self._repairer.on_event(stream, event)
                return
        if not isinstance(event, Done | Failed):
            self._see_late(event.job_id)

    def invalidate_all(self) -> None:
        """The subscription is a new one: frames may be missing from every stream (rule 4), and data from the store."""
        self._read_again("subscription")
        self._repairer.spawn(self.keeper.doubt())

    def hinted(self, job_id: str, reason: EndReason) -> None:
        """The store has been asked to end a request of this gateway, maybe through another one."""
        stream = self._streams.get(job_id)
        if stream is not None and stream.end is None:
            stream.cancel = stream.cancel or reason

    def _read_again(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.is_trusted = False
            self._repairer.request_log(stream, reason)
        self._repairer.spawn(self.keeper.check())

    # ── how streams come and go ──────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        """Ask for streams that are silent, and end those whose time is up (rule 15). Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """One round of `watch`."""
        streams = list(self._streams.values())
        self._patience.look(streams, now)
        self.keeper.grow(streams, now)
        if self.keeper.expire(now):
            self._table.expire(self.keeper.ended.ids(now))

    def fail_all(self, error: PenstockError) -> None:
        """Nothing more will come through this gateway: end every stream that is read here in an error."""
        now = time.monotonic()
        for stream in list(self._streams.values()):
            stream.fail(error, now)

    async def drain(self) -> None:
        """Wait for cancels and the like that are on their way."""
        await self._repairer.drain()

    def give_up(self, stream: RelayStream, reason: EndReason) -> None:
        """Its time is up: cancel it in the store, which records the end."""
        self._repairer.spawn(self._give_up(stream, reason))

    async def _give_up(self, stream: RelayStream, reason: EndReason) -> None:
        outcome = await self._canceller.cancel(stream.job.id, reason)
        if outcome == "running":  # a worker has come in the meantime
            stream.verdict = None
        elif outcome == "done":  # it had ended in time, and the frame of that was lost
            self._repairer.request_log(stream, "cancel")

    def fail_late(self, stream: RelayStream, now: float) -> None:
        """The store has no end of it long after its deadline: end its readers with `DeadlineExceeded`."""
        stream.fail(DeadlineExceeded(LATE), now)
        if not stream.readers:
            self._remove(stream)
        self._repairer.spawn(self._canceller.cancel(stream.job.id, "deadline", until_ended=True))

    def _ended(self, stream: RelayStream) -> None:
        is_held = stream.job.id in self._streams
        if is_held or stream.job.retention_s is not None:  # else its client may have had it all, some time ago
            self.keeper.keep(stream)
        if is_held and stream.job.once:
            self._repairer.spawn(self.keeper.keep_bound(stream.job))
        if is_held and (stream.job.retention_s is not None or not stream.readers):
            self.keeper.weigh(stream, self.keeper.retention_of(stream.job, stream.end))
        if is_held and not stream.readers:
            self._remove(stream)

    def _remove(self, stream: RelayStream) -> None:
        if self._table.remove(stream) and stream.is_followed:
            self._repairer.unfollow(stream.job.id)

    def _see_late(self, job_id: str) -> None:
        """A worker runs what is over here: it has ended and the store was rolled back, or it was cancelled (rule 18).

        Any other id is ignored: it does not prove that its client has left.
        """
        if self.keeper.get(job_id) is not None:
            if self.may("check"):
                self._repairer.spawn(self.keeper.check_one(job_id))
        elif (
            self._has_lease()
            and (reason := self._canceller.why_again(job_id)) is not None
            and self.may("cancel_orphan")
        ):
            self._repairer.spawn(self._canceller.cancel(job_id, reason))
