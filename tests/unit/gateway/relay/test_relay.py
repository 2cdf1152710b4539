"""The relay: published frames are believed only when they are surely next; everything else comes from the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace as replace_job

from penstock.errors import InvalidRequest, QueueFull, StoreUnavailable
from penstock.event import Done, Event, Failed, Started, Tokens, fold
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.pool import PoolView
from penstock.gateway.relay import Reader, Relay, RelayStream, keeper, patience, unwanted
from penstock.gateway.relay.stream import MAX_SERVED, run_push, wait_changed
from penstock.job import Claim, Job, OnDisconnect, Sampling
from penstock.metrics import Metrics
from penstock.rich_token import text_of
from penstock.transports import memory, quota
from penstock.transports.base import EndReason
from penstock.transports.memory import MemoryTransport
from penstock.transports.memory_state import Entry
from tests.support.memory import changing, forget
from tests.support.waiting import wait_until, wait_until_async

WORKER = WorkerInfo(id="w1", models={"mock": Capabilities()}, num_slots=8, num_free=8)


class Rig:
    """A relay over a memory transport whose publishing can be cut off, and a worker moved by hand."""

    def __init__(self) -> None:
        self.on_disconnect: OnDisconnect = "cancel"
        self.transport = MemoryTransport()
        self.is_cut = False
        self.reads: list[str] = []
        self.has_lease = True
        self.pool = PoolView()
        self.once = ""
        self.is_stream = True
        self.retention_s: float | None = None
        self.relay = Relay(
            "g1",
            self.transport,
            max_depth=2,
            pool=self.pool,
            has_lease=lambda: self.has_lease,
            on_log_read=self.reads.append,
            no_worker_grace_s=0.05,
            resume_window_s=1.0,
        )
        self.num = 0
        self.reader: Reader

    def deliver(self, event: Event) -> None:
        if not self.is_cut:
            self.relay.deliver(event)

    async def start(self) -> None:
        await self.transport.listen("g1", self.deliver, self.relay.invalidate_all)
        await self.transport.enlist(WORKER)
        await self.transport.tick("g1")

    async def open(self, timeout_s: float = 60.0) -> RelayStream:
        self.num += 1
        job = Job(
            id=f"g1.{self.num}",
            model="mock",
            prompt="x",
            sampling=Sampling(max_tokens=8),
            timeout_s=timeout_s,
            on_disconnect=self.on_disconnect,
            retention_s=self.retention_s,
            once=self.once,
            stream=self.is_stream,
        )
        self.reader = await self.relay.open(job)
        return self.reader.stream

    async def claim(self) -> Claim:
        ids = dict.fromkeys(await self.transport.take("w1", 1))
        (claim,) = await self.transport.claim("w1", list(ids))
        return claim

    async def tokens(self, claim: Claim, seq: int, *texts: str) -> None:
        await self.transport.emit("w1", [Tokens(claim.job.id, claim.attempt, seq, tokens=texts)])

    async def done(self, claim: Claim, seq: int) -> None:
        await self.transport.emit("w1", [Done(claim.job.id, claim.attempt, seq, finish_reason="stop")])


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.start()
    watching = asyncio.create_task(rig.relay.watch())
    yield rig
    watching.cancel()


async def test_tokens_in_order_need_no_log(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    await rig.tokens(claim, 1, "b", "c")
    assert stream.is_started
    assert rig.reader.fresh() == (0, ["a", "b", "c"])
    await rig.done(claim, 3)
    assert isinstance(stream.end, Done)
    assert rig.reader.fresh() == (3, [])
    assert rig.reads == []


async def test_a_lost_frame_is_read_from_the_log(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    rig.is_cut = True
    await rig.tokens(claim, 0, "a")
    rig.is_cut = False
    await rig.tokens(claim, 1, "b")
    await wait_until(lambda: stream.tokens == ["a", "b"], "the gap is mended")
    assert rig.reads == ["gap"]
    await rig.tokens(claim, 2, "c")
    assert stream.tokens == ["a", "b", "c"]


async def test_a_lost_end_is_found_by_asking(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RUNNING_SILENCE_S", 0.05)
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    rig.is_cut = True
    await rig.done(claim, 1)
    await wait_until(lambda: stream.end is not None, "silence makes it ask")
    assert rig.reads == ["silence"]


async def test_repeated_and_overlapping_frames_show_once(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a", "b")
    rig.relay.deliver(Tokens(claim.job.id, claim.attempt, 0, tokens=("a", "b")))
    rig.relay.deliver(Tokens(claim.job.id, claim.attempt, 1, tokens=("b", "c")))
    assert stream.tokens == ["a", "b", "c"]


async def test_frames_of_an_older_attempt_are_ignored(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    rig.relay.deliver(Started(claim.job.id, claim.attempt + 1, 0))
    await rig.tokens(claim, 0, "old")
    rig.relay.deliver(Tokens(claim.job.id, claim.attempt + 1, 0, tokens=("new",)))
    assert stream.tokens == ["new"]


async def test_a_newer_attempt_counts_only_from_its_started(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    rig.relay.deliver(Tokens(claim.job.id, claim.attempt + 5, 1, tokens=("forged",)))
    await wait_until(lambda: rig.reads == ["attempt"] and stream.waiting_frames is None, "it reads the log")
    assert stream.tokens == ["a"]


async def test_after_a_new_subscription_the_log_is_read_first(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    rig.is_cut = True
    await rig.tokens(claim, 1, "b")
    rig.is_cut = False
    rig.relay.invalidate_all()
    rig.relay.deliver(Tokens(claim.job.id, claim.attempt, 1, tokens=("forged",)))
    await wait_until(lambda: len(stream.tokens) == 2, "the log was read")
    assert stream.tokens == ["a", "b"]


async def test_frames_that_come_while_the_log_is_read_are_kept(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    rig.relay.invalidate_all()
    await rig.tokens(claim, 0, "a")
    await rig.done(claim, 1)
    await wait_until(lambda: stream.end is not None, "the end is there")
    assert stream.tokens == ["a"]
    assert rig.reads == ["subscription"]


async def test_a_lost_request_is_submitted_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RUNNING_SILENCE_S", 0.05)
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a", "b")
    forget(rig.transport, "jobs", "lists")  # what FLUSHALL does
    await wait_until(lambda: len(rig.transport.snapshot().queue) == 1, "it was pushed again")
    again = await rig.claim()
    assert again.tokens == ("a", "b")
    assert again.attempt > claim.attempt
    await rig.tokens(again, 2, "c")
    await rig.done(again, 3)
    assert stream.tokens == ["a", "b", "c"]
    assert isinstance(stream.end, Done)


async def test_a_log_behind_the_client_is_restored(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a", "b")
    with changing(rig.transport) as state:  # a restart from an older snapshot
        entry = state.jobs[claim.job.id]
        entry.log[-1] = Tokens(claim.job.id, claim.attempt, 0, tokens=("a",))
        entry.num_tokens = 1
        entry.state = "queued"
    (short,) = await rig.transport.claim("w1", [claim.job.id])
    assert short.tokens == ("a",)
    await wait_until(
        lambda: rig.transport.snapshot().jobs[claim.job.id].num_tokens == 2, "the missing token was given back"
    )
    await rig.tokens(short, 1, "other", "tokens", "here")
    assert stream.tokens == ["a", "b"]
    again = await rig.claim()
    assert again.tokens == ("a", "b")
    await rig.tokens(again, 2, "c")
    assert stream.tokens == ["a", "b", "c"]


@pytest.mark.parametrize("relayed", [(), ("a", "b")])
async def test_frames_of_an_attempt_that_the_store_has_lost_are_not_believed_after_it_was_given_the_request_back(
    rig: Rig, relayed: tuple[str, ...]
) -> None:
    """They were on their way all the time: of a worker of which this gateway has heard nothing yet."""
    stream = await rig.open()
    claim = await rig.claim()
    if relayed:
        await rig.tokens(claim, 0, *relayed)
    lost_attempt = claim.attempt + 1
    await wait_until(lambda: time.time() * 1000 > lost_attempt, "the store's clock has passed its number")
    rig.pool.look(await rig.transport.tick("g1"))
    with changing(rig.transport) as state:
        del state.jobs[claim.job.id]
    rig.relay.invalidate_all()
    await wait_until(lambda: claim.job.id in rig.transport.snapshot().queue, "it is in the queue again")
    await rig.relay.drain()
    rig.deliver(Started(claim.job.id, lost_attempt, len(relayed)))
    rig.deliver(Tokens(claim.job.id, lost_attempt, len(relayed), tokens=("of", "a", "lost", "attempt")))
    await rig.relay.drain()
    assert stream.tokens == list(relayed)
    again = await rig.claim()
    assert again.tokens == relayed
    await rig.tokens(again, len(relayed), "c")
    await rig.done(again, len(relayed) + 1)
    assert stream.tokens == [*relayed, "c"]
    assert isinstance(stream.end, Done)


async def test_a_poll_requeues_a_request_in_no_list_whose_gateway_is_gone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig.on_disconnect, rig.retention_s = "continue", 60.0
    job_id = (await rig.open()).job.id
    forget(rig.transport, "queue")  # a worker popped it for a connection that was gone
    other = Relay("g2", rig.transport, max_depth=2)
    await rig.transport.tick("g2")
    assert await other.look_up(job_id) is not None
    assert not rig.transport.snapshot().queue, "it may be on its way to a worker just now"
    monkeypatch.setattr(patience, "STRANDED_S", 0.0)
    assert await other.look_up(job_id) is not None
    assert await other.look_up(job_id) is not None
    assert rig.transport.snapshot().queue == [job_id]
    assert [record.getMessage() for record in caplog.records] == [
        "pushed again: it was in no list, and its gateway is gone"
    ], "the second poll found it in the queue, and logs nothing"


async def test_an_ended_request_is_not_cancelled_when_the_store_was_rolled_back(rig: Rig) -> None:
    rig.on_disconnect, rig.retention_s = "continue", 60.0
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    await rig.done(claim, 1)
    assert isinstance(stream.end, Done)
    assert stream.readers, "as while its POST is still being answered"
    with changing(rig.transport) as state:
        entry = state.jobs[claim.job.id]
        entry.state, entry.num_tokens = "queued", 0
        entry.log.clear()
    rig.relay.invalidate_all()
    await rig.relay.drain()
    record = await rig.transport.read(claim.job.id)
    assert record is not None
    end = fold(record.events).end
    assert isinstance(end, Done)
    assert end.finish_reason == "stop"


async def test_the_deadline_ends_a_queued_stream(rig: Rig) -> None:
    stream = await rig.open(timeout_s=0.05)
    await wait_until(lambda: stream.end is not None, "the deadline ends it")
    assert isinstance(stream.end, Failed)
    assert stream.end.code == "deadline_exceeded"
    assert not rig.transport.snapshot().queue


async def test_an_end_in_time_whose_frame_was_lost_is_found_at_the_deadline(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    rig.is_cut = True
    await rig.done(claim, 1)
    stream.asked_at += 60.0  # silence would find it too, a second after its last frame
    stream.deadline_at = time.monotonic()
    await wait_until(lambda: stream.end is not None, "the log was read")
    assert isinstance(stream.end, Done)


async def test_without_workers_a_queued_stream_ends_in_no_workers(rig: Rig) -> None:
    rig.pool.look(Pool(depth=0))
    stream = await rig.open()
    await wait_until(lambda: stream.end is not None, "the grace is over")
    assert isinstance(stream.end, Failed)
    assert stream.end.code == "no_workers"


async def test_a_reader_that_leaves_cancels(rig: Rig) -> None:
    stream = await rig.open()
    rig.relay.leave(rig.reader, is_delivered=False)
    await wait_until(lambda: not rig.transport.snapshot().queue, "the id left the queue")
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    assert record.state == "done"
    assert len(rig.relay) == 0


async def test_a_full_queue_leaves_nothing_behind(rig: Rig) -> None:
    await rig.open()
    await rig.open()
    with pytest.raises(QueueFull):
        await rig.open()
    assert len(rig.relay) == 2
    assert len(rig.transport.snapshot().jobs) == 2


async def test_a_reader_waits_for_news_or_time(rig: Rig) -> None:
    await rig.open()
    reader = rig.reader
    await wait_changed([reader], 0.01)
    assert not reader.has_news
    reading = asyncio.create_task(wait_changed([reader]))
    await asyncio.sleep(0)
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    await reading
    assert reader.has_news


def serving(rig: Rig, stream: RelayStream, reader: Reader | None = None) -> tuple[asyncio.Task[None], list[list[str]]]:
    """A task that has a reader of `stream` served, and what each of its turns brought. Ends with `"stop"`, fails with
    `"fail"`."""
    reader = rig.relay.read(stream) if reader is None else reader
    turns: list[list[str]] = []

    def push(reader: Reader) -> bool:
        _, tokens = reader.fresh()
        turns.append([str(token) for token in tokens])
        if "fail" in tokens:
            raise ValueError("a bug in an API")
        return "stop" not in tokens

    return asyncio.create_task(run_push([reader], push)), turns


async def test_events_of_one_turn_are_served_at_once_and_wake_no_task(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    serve, turns = serving(rig, stream, rig.reader)
    await asyncio.sleep(0)
    for seq, text in enumerate("abc"):
        rig.relay.deliver(Tokens(stream.job.id, claim.attempt, seq, tokens=(text,)))
    assert turns == [], "not from within: what feeds the relay never waits for a client"
    await asyncio.sleep(0)
    assert turns == [["a", "b", "c"]]
    rig.reader.wake()
    await asyncio.sleep(0)
    assert turns == [["a", "b", "c"], []]
    assert not serve.done()
    rig.relay.deliver(Tokens(stream.job.id, claim.attempt, 3, tokens=("stop",)))
    rig.reader.wake()
    await serve
    assert turns[2:] == [["stop"]]
    rig.relay.deliver(Tokens(stream.job.id, claim.attempt, 4, tokens=("d",)))
    await asyncio.sleep(0)
    assert rig.reader.fresh() == (4, ["d"]), "who has gone back to waiting has lost nothing"


async def three_served(rig: Rig) -> tuple[RelayStream, Claim, list[tuple[asyncio.Task[None], list[list[str]]]]]:
    stream = await rig.open()
    claim = await rig.claim()
    served = [serving(rig, stream) for _ in range(3)]
    await asyncio.sleep(0)
    return stream, claim, served


async def test_a_bug_in_serving_is_its_own_readers(rig: Rig) -> None:
    stream, claim, served = await three_served(rig)
    rig.relay.deliver(Tokens(stream.job.id, claim.attempt, 0, tokens=("a",)))
    await asyncio.sleep(0)
    served[0][0].cancel()  # in the very turn in which it is to be served
    rig.relay.deliver(Tokens(stream.job.id, claim.attempt, 1, tokens=("fail",)))
    outcomes = await asyncio.gather(*(task for task, _ in served), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, ValueError, ValueError]


async def test_a_cancelled_reader_disturbs_no_other(rig: Rig) -> None:
    stream, claim, served = await three_served(rig)
    rig.relay.deliver(Tokens(stream.job.id, claim.attempt, 0, tokens=("stop",)))
    served[0][0].cancel()
    await asyncio.gather(*(task for task, _ in served), return_exceptions=True)
    assert [turns for _, turns in served[1:]] == [[["stop"]], [["stop"]]]


async def test_many_readers_are_served_in_parts_and_others_have_their_turns_between(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    served = [serving(rig, stream) for _ in range(2 * MAX_SERVED + 1)]
    await asyncio.sleep(0)

    def num_served() -> list[int]:
        return [sum(turns == [["a"] * n] for _, turns in served) for n in (1, 2)]

    rig.relay.deliver(Tokens(stream.job.id, claim.attempt, 0, tokens=("a",)))
    await asyncio.sleep(0)
    assert num_served() == [MAX_SERVED, 0]
    rig.relay.deliver(Tokens(stream.job.id, claim.attempt, 1, tokens=("a",)))
    await asyncio.sleep(0)
    assert num_served() == [MAX_SERVED, MAX_SERVED], "those who still waited have both in one"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert num_served() == [0, MAX_SERVED + 1]
    assert all(turns in ([["a"], ["a"]], [["a", "a"]]) for _, turns in served), "each token once"
    for task, _ in served:
        task.cancel()
    await asyncio.gather(*(task for task, _ in served), return_exceptions=True)


async def test_of_several_readers_only_the_last_ones_leaving_counts(rig: Rig) -> None:
    stream = await rig.open()
    second = rig.relay.read(stream)
    rig.relay.leave(rig.reader, is_delivered=False)
    await rig.relay.drain()
    assert await rig.relay.find(stream.job.id) is stream
    rig.relay.leave(second, is_delivered=False)
    await wait_until(lambda: not rig.transport.snapshot().queue, "it was cancelled")


async def test_a_stream_to_resume_waits_for_a_while(rig: Rig) -> None:
    rig.on_disconnect = "resume"
    stream = await rig.open()
    claim = await rig.claim()
    rig.relay.leave(rig.reader, is_delivered=False)
    await rig.tokens(claim, 0, "a")
    again = rig.relay.read(stream)
    assert again.fresh() == (0, ["a"])
    rig.relay.leave(again, is_delivered=False)
    await wait_until(lambda: len(rig.relay) == 0, "no client came back within the window")
    await rig.relay.drain()
    renewal = await rig.transport.renew(WORKER, [claim.job.id])
    assert renewal.cancelled == {claim.job.id: "client"}


async def test_a_stream_to_continue_is_never_cancelled(rig: Rig) -> None:
    rig.on_disconnect = "continue"
    stream = await rig.open()
    claim = await rig.claim()
    rig.relay.leave(rig.reader, is_delivered=False)
    rig.relay.look(stream.submitted_at + 30.0)
    await rig.tokens(claim, 0, "a")
    await rig.done(claim, 1)
    await wait_until(lambda: stream.is_ended, "it ended, unread")
    assert stream.tokens == ["a"]
    assert len(rig.relay) == 0
    assert (await rig.transport.renew(WORKER, [claim.job.id])).cancelled == {}


async def test_another_gateway_takes_a_stream_up(rig: Rig) -> None:
    rig.on_disconnect = "resume"
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a", "b")
    other = Relay("g2", rig.transport, max_depth=2)
    await rig.transport.listen("g2", other.deliver, other.invalidate_all)
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    taken_up = await other.attach(stream.job.id, record)
    reader = other.read(taken_up, after=1)
    rig.relay.leave(rig.reader, is_delivered=False)
    await wait_until(lambda: len(rig.relay) == 0, "the first gateway has let go")
    await rig.tokens(claim, 2, "c")
    await rig.done(claim, 3)
    await wait_until(lambda: taken_up.end is not None, "the end came")
    assert reader.fresh() == (1, ["b", "c"])
    assert isinstance(taken_up.end, Done)
    assert taken_up.end.finish_reason == "stop"


async def test_readers_that_come_while_a_stream_is_taken_up_share_its_fate(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to the first one's adoption is lost. The second has its stream all the same, not one that is let go."""
    rig.on_disconnect = "resume"
    stream = await rig.open()
    claim = await rig.claim()
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    adopt, is_lost = rig.transport.adopt, asyncio.Event()

    async def lose_the_first(job_id: str, gateway_id: str, *, is_read: bool) -> bool:
        if not is_lost.is_set():
            await is_lost.wait()
            raise StoreUnavailable("the reply was lost")
        return await adopt(job_id, gateway_id, is_read=is_read)

    monkeypatch.setattr(rig.transport, "adopt", lose_the_first)
    other = Relay("g2", rig.transport, max_depth=2)
    await rig.transport.listen("g2", other.deliver, other.invalidate_all)
    first, second = (asyncio.create_task(other.attach(stream.job.id, record)) for _ in range(2))
    await asyncio.sleep(0)
    is_lost.set()
    with pytest.raises(StoreUnavailable):
        await first
    reader = other.read(await second)
    await rig.tokens(claim, 0, "a")
    await rig.done(claim, 1)
    await wait_until(lambda: reader.stream.end is not None, "the second one's end")
    assert reader.fresh() == (0, ["a"])


async def test_a_stream_that_could_not_be_submitted_is_not_found(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    is_lost = asyncio.Event()

    async def lose(*args: object, **kwargs: object) -> int:
        await is_lost.wait()
        raise StoreUnavailable("the reply was lost")

    monkeypatch.setattr(rig.transport, "submit", lose)
    opening = asyncio.create_task(rig.open())
    finding = asyncio.create_task(rig.relay.find("g1.1"))
    await asyncio.sleep(0)
    is_lost.set()
    with pytest.raises(StoreUnavailable):
        await opening
    assert await finding is None


async def test_a_frame_of_a_cancelled_request_cancels_it_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwanted, "HEARD_WITHIN_S", 0.0)
    stream = await rig.open()
    claim = await rig.claim()
    rig.relay.leave(rig.reader, is_delivered=False)
    await rig.relay.drain()
    with changing(rig.transport) as state:
        state.jobs[stream.job.id].cancel = None  # the store has gone back to before its client left
    await rig.tokens(claim, 0, "a")

    async def is_marked() -> bool:
        return (await rig.transport.renew(WORKER, [stream.job.id])).cancelled != {}

    await wait_until_async(is_marked, "it was cancelled")


async def test_a_frame_of_an_unknown_request_cancels_nothing(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    rig.relay._streams.clear()  # it has ended long ago, say, and the store has gone back
    await rig.tokens(claim, 0, "a")
    await rig.relay.drain()
    assert (await rig.transport.renew(WORKER, [stream.job.id])).cancelled == {}


async def ended(rig: Rig, on_disconnect: OnDisconnect = "continue", once: str = "") -> tuple[RelayStream, Claim, Entry]:
    """A request that has ended, and an older state of it: running, without its last token and its end."""
    rig.on_disconnect, rig.once = on_disconnect, once
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    older = rig.transport.snapshot().jobs[stream.job.id]
    await rig.tokens(claim, 1, "b")
    await rig.done(claim, 2)
    rig.relay.leave(rig.reader, is_delivered=True)
    assert rig.transport.snapshot().jobs[stream.job.id].state == "done"
    return stream, claim, older


async def said(rig: Rig, stream: RelayStream) -> tuple[str, tuple[str, ...], str]:
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    folded = fold(record.events)
    return record.state, tuple(map(text_of, folded.tokens)), getattr(folded.end, "finish_reason", "")


@pytest.mark.parametrize("on_disconnect", ["continue", "cancel", "resume"])
async def test_an_ended_request_is_given_back_when_a_worker_runs_it_again(
    rig: Rig, on_disconnect: OnDisconnect
) -> None:
    stream, claim, older = await ended(rig, on_disconnect)
    with changing(rig.transport) as state:
        state.jobs[stream.job.id] = older  # a restart from an older state, in which a worker goes on with it
    await rig.tokens(claim, 1, "other")

    async def is_done() -> bool:
        return (await said(rig, stream))[0] == "done"

    await wait_until_async(is_done, "its end is given back")
    assert await said(rig, stream) == ("done", ("a", "b"), "stop")
    assert await rig.transport.emit("w1", [Tokens(claim.job.id, claim.attempt, 2, tokens=("more",))]) == {claim.job.id}


@pytest.mark.parametrize("on_disconnect", ["continue", "resume"])
async def test_a_result_that_the_store_has_lost_is_given_back(rig: Rig, on_disconnect: OnDisconnect) -> None:
    rig.retention_s = 300.0
    stream, _, older = await ended(rig, on_disconnect)
    forget(rig.transport, "jobs", "gateways")
    rig.relay.invalidate_all()

    async def is_there() -> bool:
        return await rig.transport.read(stream.job.id) is not None

    await wait_until_async(is_there, "it is there again")
    assert await said(rig, stream) == ("done", ("a", "b"), "stop")
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    assert abs(record.created_at - older.created_at) < 5.0
    assert record.started_at
    left_s = rig.transport.snapshot().jobs[stream.job.id].expires_at - record.now
    assert 290.0 < left_s <= 300.0


async def test_a_delivered_answer_is_not_given_back_to_a_store_that_lost_it(rig: Rig) -> None:
    stream, _, _ = await ended(rig, "cancel")
    forget(rig.transport, "jobs")
    await rig.relay.keeper.check()
    assert await rig.transport.read(stream.job.id) is None


async def test_the_gateway_that_holds_a_request_answers_for_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RUNNING_SILENCE_S", 3600.0)
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    forget(rig.transport, "jobs", "lists")
    record = await rig.relay.look_up(stream.job.id)
    assert record is not None
    assert (record.state, fold(record.events).tokens) == ("running", ("a",))
    await wait_until(lambda: rig.transport.snapshot().queue == [stream.job.id], "it was submitted again at once")


async def test_a_request_that_ended_here_is_never_unknown_or_running_again(rig: Rig) -> None:
    rig.retention_s = 60.0
    stream, _, older = await ended(rig)
    for entry in (None, older):
        forget(rig.transport, "jobs")
        if entry is not None:
            with changing(rig.transport) as state:
                state.jobs[stream.job.id] = entry
        record = await rig.relay.look_up(stream.job.id)
        assert record is not None
        assert (record.state, fold(record.events).tokens) == ("done", ("a", "b"))
        await rig.relay.drain()
        assert (await said(rig, stream))[0] == "done"


async def test_another_gateway_is_unsure_of_an_unknown_request_after_a_loss_of_data(rig: Rig) -> None:
    other = Relay("g2", rig.transport, max_depth=2)
    await rig.transport.tick("g2")
    assert await other.look_up("g1.nothing") is None
    forget(rig.transport, "gateways")
    with pytest.raises(StoreUnavailable):
        await other.look_up("g1.nothing")


async def test_a_store_that_has_just_come_back_is_not_believed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.relay.invalidate_all()
    await rig.relay.drain()
    with pytest.raises(StoreUnavailable):
        await rig.relay.look_up("g2.nothing")
    monkeypatch.setattr(keeper, "UNSURE_S", 0.0)
    assert await rig.relay.look_up("g2.nothing") is None
    monkeypatch.setattr(MemoryTransport, "is_listening", False)
    with pytest.raises(StoreUnavailable):
        await rig.relay.look_up("g2.nothing")


async def test_nor_of_a_position_in_it(rig: Rig) -> None:
    stream = await rig.open()
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    forget(rig.transport, "gateways")
    with pytest.raises(StoreUnavailable):
        await rig.relay.attach(stream.job.id, record, 2)


async def test_a_key_is_given_back_with_its_request(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RUNNING_SILENCE_S", 0.05)
    rig.once = "key hash"
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    for name in ("_jobs", "_lists", "_bound"):
        getattr(rig.transport, name).clear()  # what FLUSHALL does
    await wait_until(lambda: len(rig.transport.snapshot().queue) == 1, "it was pushed again")
    bound = await rig.transport.bind_key(replace_job(stream.job, id="g2.1"), 60.0)
    assert bound is not None
    assert bound.job_id == stream.job.id


async def test_a_failed_read_is_repeated(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.retention_s = 300.0
    stream, _, _ = await ended(rig)
    forget(rig.transport, "jobs")
    states, num_asked = rig.transport.states, 0

    async def refuse(job_ids: Any) -> Any:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 1:
            raise StoreUnavailable("for now")
        return await states(job_ids)

    monkeypatch.setattr(rig.transport, "states", refuse)
    monkeypatch.setattr(keeper, "_AGAIN_S", 0.0)
    await rig.relay.keeper.check()
    assert stream.job.id in rig.transport.snapshot().jobs


async def test_a_key_is_given_back_with_its_answer(rig: Rig) -> None:
    rig.retention_s = 300.0
    stream, _, _ = await ended(rig, once="key hash")
    await rig.relay.drain()
    for name in ("_jobs", "_bound", "_gateways"):
        getattr(rig.transport, name).clear()
    rig.relay.invalidate_all()
    await wait_until(lambda: stream.job.id in rig.transport.snapshot().jobs, "it is there again")
    bound = await rig.transport.bind_key(replace_job(stream.job, id="g2.1"), 60.0)
    assert bound is not None
    assert bound.job_id == stream.job.id


async def test_a_gateway_remembers_the_result_that_it_gave_to_a_poller(rig: Rig) -> None:
    rig.on_disconnect, rig.retention_s = "continue", 300.0
    stream = await rig.open()
    claim = await rig.claim()
    other = Relay("g2", rig.transport, max_depth=2)
    rig.is_cut = True
    await rig.tokens(claim, 0, "a")
    await rig.done(claim, 1)
    for relay in (rig.relay, other):
        record = await relay.look_up(stream.job.id)
        assert record is not None
        assert record.state == "done"
    assert isinstance(stream.end, Done)
    forget(rig.transport, "jobs")  # and its own gateway, say, is gone by now
    record = await other.look_up(stream.job.id)
    assert record is not None
    assert fold(record.events).tokens == ("a",)


async def test_an_attempt_restored_by_a_rollback_does_not_run_unseen(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    older = rig.transport.snapshot().jobs[stream.job.id]
    with changing(rig.transport) as state:
        state.jobs[stream.job.id].state = "queued"
    (newer,) = await rig.transport.claim("w1", [stream.job.id])
    await rig.tokens(newer, 1, "b")
    with changing(rig.transport) as state:
        state.jobs[stream.job.id] = older
    rig.relay.request_log(stream, "silence")
    await wait_until(lambda: rig.transport.snapshot().jobs[stream.job.id].state == "queued", "it is to run again")
    again = await rig.claim()
    assert again.tokens == ("a", "b")
    assert again.attempt > newer.attempt


async def _cancelled_elsewhere(rig: Rig, reason: EndReason) -> RelayStream:
    """A running request that another gateway was asked to cancel; its own has heard of it."""
    rig.on_disconnect = "continue"
    await rig.transport.watch("g1", rig.relay.hinted)
    stream = await rig.open()
    await rig.claim()
    assert await rig.transport.cancel(stream.job.id, reason) == "marked"
    await wait_until(lambda: stream.cancel == reason, "its owner has heard of it")
    return stream


async def test_a_cancel_through_another_gateway_outlives_the_stores_data(rig: Rig) -> None:
    stream = await _cancelled_elsewhere(rig, "client")
    forget(rig.transport, "jobs", "lists")
    submitted: list[Job] = []

    async def note(job: Job, *args: Any, **kwargs: Any) -> int:
        submitted.append(job)
        return 0

    rig.transport.submit = note  # type: ignore[method-assign]
    rig.relay.invalidate_all()
    await wait_until(lambda: stream.end is not None or submitted, "it ends")
    assert not submitted, "no worker is to run it again, not even for a moment"
    assert isinstance(stream.end, Done)
    assert (await said(rig, stream))[2] == "cancelled"


async def test_a_cancel_that_alone_was_lost_is_repeated(rig: Rig) -> None:
    """It went back to a moment at which the request ran."""
    stream = await _cancelled_elsewhere(rig, "operator")
    with changing(rig.transport) as state:
        state.jobs[stream.job.id].cancel = None
    rig.relay.invalidate_all()
    await wait_until(lambda: rig.transport.snapshot().jobs[stream.job.id].cancel == "operator", "it is to end again")


async def test_a_cancel_of_a_request_that_was_just_lost_is_accepted(rig: Rig) -> None:
    """The gateway that holds it knows it: it is not unknown, and it is not left to run."""
    stream = await rig.open()
    await rig.claim()
    forget(rig.transport, "jobs", "lists")
    num_reads = len(rig.reads)
    assert await rig.relay.cancel(stream.job.id, "client") == "marked"
    assert rig.reads[num_reads:] == ["cancel"]
    await wait_until(lambda: stream.end is not None, "it ends")
    assert (await said(rig, stream))[2] == "cancelled"


async def test_a_submit_of_unknown_outcome_leaves_no_gauge_behind(rig: Rig) -> None:
    meters = Metrics(models=["mock"])
    meter = meters.meter("mock", "/v1/generate")
    submit = rig.transport.submit

    async def lost(*args: Any, **kwargs: Any) -> int:
        await submit(*args, **kwargs)
        await rig.claim()  # it has started by the time that the gateway gives up
        raise StoreUnavailable("the reply was lost")

    rig.transport.submit = lost  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await rig.relay.open(Job(id="g1.lost", model="mock", prompt="x"), meter)
    assert meters._series["mock"].num_running == 0
    assert b'outcome="cancelled"' not in meters.render()[0], "a refusal is counted where it is made; no client has left"


async def test_a_request_that_ends_before_a_lost_reply_to_its_submit_is_answered_and_counted_once(rig: Rig) -> None:
    meters = Metrics(models=["mock"])
    submit = rig.transport.submit

    async def lost(*args: Any, **kwargs: Any) -> int:
        await submit(*args, **kwargs)
        claim = await rig.claim()
        await rig.tokens(claim, 0, "a")
        await rig.done(claim, 1)
        raise StoreUnavailable("the reply was lost")

    rig.transport.submit = lost  # type: ignore[method-assign]
    reader = await rig.relay.open(Job(id="g1.lost", model="mock", prompt="x"), meters.meter("mock", "/v1/generate"))
    assert reader.fresh() == (0, ["a"])
    assert isinstance(reader.stream.end, Done)
    assert len(rig.relay) == 1, "it is held until its reader leaves"
    rig.relay.leave(reader, is_delivered=True)
    assert len(rig.relay) == 0
    counted = [line for line in meters.render()[0].decode().splitlines() if line.startswith("penstock_requests_total{")]
    assert [line.rpartition(" ")[2] for line in counted if 'outcome="ok"' in line] == ["1.0"]


async def test_a_running_request_past_its_deadline_ends_without_a_worker(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "DEADLINE_SLACK_S", 0.1)
    monkeypatch.setattr(memory, "LATE_SLACK_S", 0.5)  # at its deadline it is only marked
    stream = await rig.open(timeout_s=0.2)
    await rig.claim()  # and its worker is never heard of again
    await wait_until(lambda: stream.end is not None, "the deadline ends it")
    assert isinstance(stream.end, Failed)
    assert stream.end.code == "deadline_exceeded"

    async def is_done() -> bool:
        return (await said(rig, stream))[0] == "done"

    await wait_until_async(is_done, "the store knows it")


async def test_a_read_of_a_request_past_its_deadline_ends_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gateway and its worker are gone: no one else ends it."""
    monkeypatch.setattr("penstock.gateway.relay.look_up.LATE_SLACK_S", 0.0)
    monkeypatch.setattr(memory, "LATE_SLACK_S", 0.0)
    job = Job(id="g2.left", model="mock", prompt="x", timeout_s=0.05)
    await rig.transport.submit(job, "g2", 0)
    await rig.claim()
    seen: list[str] = []

    async def is_done() -> bool:
        record = await rig.relay.look_up(job.id)
        seen.append(record.state if record is not None else "unknown")
        return seen[-1] != "running"

    await wait_until_async(is_done, "it ends")
    assert seen[-1] == "done"
    record = await rig.transport.read(job.id)
    assert record is not None
    end = fold(record.events).end
    assert isinstance(end, Failed)
    assert end.code == "deadline_exceeded"


async def test_without_workers_the_store_gets_the_reason(rig: Rig) -> None:
    rig.pool.look(Pool(depth=0))
    stream = await rig.open()
    await wait_until(lambda: stream.end is not None, "the grace is over")
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    end = fold(record.events).end
    assert isinstance(end, Failed)
    assert end.code == "no_workers"


async def test_a_position_that_was_never_reached_is_refused(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    assert await rig.relay.attach(stream.job.id, record, 1) is stream
    with pytest.raises(InvalidRequest) as refused:
        await rig.relay.attach(stream.job.id, record, 2)
    assert refused.value.param == "Last-Event-ID"


async def test_a_gateway_without_its_lease_gives_nothing_up(rig: Rig) -> None:
    rig.on_disconnect, rig.has_lease = "resume", False
    stream = await rig.open()
    rig.relay.leave(rig.reader, is_delivered=False)
    rig.relay.look(stream.submitted_at + 1.5)
    rig.relay.look(stream.submitted_at + 3.0)
    assert len(rig.relay) == 1
    rig.has_lease = True
    rig.relay.look(stream.submitted_at + 3.5)
    assert len(rig.relay) == 0


async def test_a_gateway_without_its_lease_ends_no_request_for_want_of_workers(rig: Rig) -> None:
    rig.pool.look(Pool(depth=0))
    rig.has_lease = False
    stream = await rig.open()
    rig.relay.look(stream.submitted_at + 1.0)
    await rig.relay.drain()
    assert stream.verdict is None
    assert rig.transport.snapshot().queue == [stream.job.id]
    rig.has_lease = True
    rig.relay.look(stream.submitted_at + 2.0)
    await wait_until(lambda: stream.end is not None, "the grace is over")


async def test_a_gateway_without_its_lease_cancels_nothing_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwanted, "HEARD_WITHIN_S", 0.0)
    stream = await rig.open()
    claim = await rig.claim()
    rig.relay.leave(rig.reader, is_delivered=False)
    await rig.relay.drain()
    with changing(rig.transport) as state:
        state.jobs[stream.job.id].cancel = None
    rig.has_lease = False
    await rig.tokens(claim, 0, "a")
    await rig.relay.drain()
    assert (await rig.transport.renew(WORKER, [stream.job.id])).cancelled == {}


async def test_while_its_gateway_stood_still_no_client_could_come_back(rig: Rig) -> None:
    rig.on_disconnect = "resume"
    stream = await rig.open()
    rig.relay.look(stream.submitted_at)
    rig.relay.leave(rig.reader, is_delivered=False)
    for seconds in (10.0, 10.9):  # the window is 1 s
        rig.relay.look(stream.submitted_at + seconds)
        assert len(rig.relay) == 1
    rig.relay.look(stream.submitted_at + 11.5)
    assert len(rig.relay) == 0


async def test_a_queued_job_in_no_list_is_pushed_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "QUEUED_SILENCE_S", (0.05, 0.05, 0.05))
    monkeypatch.setattr(patience, "STRANDED_S", 0.1)
    stream = await rig.open()
    await rig.transport.take("w1", 1)
    forget(rig.transport, "lists")  # what a bare BLPOP leaves behind
    await wait_until(lambda: rig.transport.snapshot().queue == [stream.job.id], "it was pushed again")


# ── what an answer counts with ───────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_is_booked_ahead_of_its_tokens(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    booked: list[int] = []
    grow = rig.transport.grow

    def grown(job: Job, num_bytes: int, life_s: float) -> None:
        assert 0 < life_s <= job.timeout_s + 60.0
        booked.append(num_bytes // quota.TOKEN_BYTES)
        grow(job, num_bytes, life_s)

    monkeypatch.setattr(rig.transport, "grow", grown)
    job = Job(id="g1.1", model="mock", prompt="x", sampling=Sampling(max_tokens=9_000), caller="bob")
    stream = (await rig.relay.open(job)).stream
    (claim,) = await rig.transport.claim("w1", await rig.transport.take("w1", 1))
    for num, seen in ((2_000, []), (2_000, [8_192]), (2_000, [8_192, 9_000]), (2_000, [8_192, 9_000])):
        await rig.transport.emit("w1", [Tokens(job.id, claim.attempt, len(stream.tokens), tokens=("a",) * num)])
        rig.relay.look(time.monotonic())
        assert booked == seen
    assert rig.transport._books.bytes_of("bob") > 9_000 * quota.TOKEN_BYTES
    await rig.transport.emit("w1", [Done(job.id, claim.attempt, 8_000, finish_reason="stop")])
    rig.relay.leave(stream.readers[0], is_delivered=True)
    assert booked[-1] == 8_000
    assert rig.transport._books.bytes_of("bob") < 8_100 * quota.TOKEN_BYTES


async def test_a_quick_answer_counts_with_all_of_its_tokens(rig: Rig) -> None:
    """One that ends before the gateway looks."""
    job = Job(id="g1.1", model="mock", prompt="x", sampling=Sampling(max_tokens=9_000), caller="bob")
    stream = (await rig.relay.open(job)).stream
    (claim,) = await rig.transport.claim("w1", await rig.transport.take("w1", 1))
    end = Done(job.id, claim.attempt, 0, tokens=("a",) * 9_000, finish_reason="length")
    await rig.transport.emit("w1", [end])
    rig.relay.leave(stream.readers[0], is_delivered=True)
    assert rig.transport._books.bytes_of("bob") >= 9_000 * quota.TOKEN_BYTES


async def test_a_request_that_another_gateway_has_deleted_is_not_remembered_here(rig: Rig) -> None:
    rig.retention_s = 60.0
    stream = await rig.open()
    await rig.done(await rig.claim(), 0)
    assert isinstance(stream.end, Done)
    rig.relay.leave(rig.reader, is_delivered=True)
    other = Relay("g2", rig.transport, max_depth=2)
    await rig.transport.tick("g2")
    assert await other.look_up(stream.job.id) is not None
    assert await other.delete(stream.job)
    assert await rig.relay.look_up(stream.job.id) is None
    assert await other.look_up(stream.job.id) is None
    await rig.relay.keeper.check()
    assert await rig.transport.read(stream.job.id) is None


async def test_a_reader_who_missed_the_end_of_a_deleted_request_is_not_left_waiting(rig: Rig) -> None:
    rig.retention_s = 60.0
    stream = await rig.open()
    rig.is_cut = True
    await rig.transport.cancel(stream.job.id, "operator")
    assert await rig.transport.delete(stream.job)
    rig.is_cut = False
    rig.relay.request_log(stream, "silence")
    await wait_until(lambda: stream.end is not None, "it ends")
    assert isinstance(stream.end, Failed)
    assert stream.end.code == "request_not_found"
    assert await rig.transport.waiting() == []


async def test_the_readers_of_a_deleted_request_read_it_to_its_end(rig: Rig) -> None:
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a")
    await rig.done(claim, 1)
    assert await rig.relay.delete(stream.job)
    assert await rig.relay.look_up(stream.job.id) is None
    assert rig.reader.fresh() == (0, ["a"])
    rig.relay.leave(rig.reader, is_delivered=True)
    assert await rig.relay.look_up(stream.job.id) is None


# ── answers that begin again ─────────────────────────────────────────────────────────────────────────────────────────


async def _begun(rig: Rig) -> tuple[RelayStream, Claim]:
    """A whole answer whose worker has written "a" and "b"."""
    rig.is_stream, rig.on_disconnect = False, "continue"
    stream = await rig.open()
    claim = await rig.claim()
    await rig.tokens(claim, 0, "a", "b")
    assert stream.tokens == ["a", "b"]
    return stream, claim


async def _again(rig: Rig, claim: Claim) -> Claim:
    """Its worker has claimed it once more, and cannot continue it."""
    (claim,) = await rig.transport.claim("w1", [claim.job.id])
    (left,) = await rig.transport.rerun("w1", [claim])
    return left


@pytest.mark.parametrize("is_heard", [True, False])
async def test_an_answer_that_begins_again_is_only_the_new_one(rig: Rig, is_heard: bool) -> None:
    stream, claim = await _begun(rig)
    rig.is_cut = not is_heard
    again = await _again(rig, claim)
    assert again.tokens == ()
    await rig.tokens(again, 0, "x")
    rig.is_cut = False
    await rig.tokens(again, 1, "y")
    await rig.done(again, 2)
    await wait_until(lambda: stream.end is not None, "the end")
    assert stream.tokens == ["x", "y"]
    assert rig.reader.fresh() == (0, ["x", "y"])
    assert rig.reads == ([] if is_heard else ["attempt"])
    assert again.attempt == stream.attempt


async def test_the_first_token_of_what_begins_again_is_its_first(rig: Rig) -> None:
    stream, claim = await _begun(rig)
    first_at = stream.first_token_at
    again = await _again(rig, claim)
    assert stream.first_token_at == 0.0
    await rig.tokens(again, 0, "x")
    assert stream.first_token_at >= first_at > 0.0


async def test_what_a_client_has_read_does_not_begin_again(rig: Rig) -> None:
    stream, claim = await _begun(rig)
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    assert await rig.relay.attach(stream.job.id, record) is stream
    again = await _again(rig, claim)
    assert again.tokens == ("a", "b")
    await rig.tokens(again, 2, "c")
    assert rig.relay.read(stream).fresh() == (0, ["a", "b", "c"])


async def test_a_reader_that_comes_too_late_gets_nothing_of_what_is_void(rig: Rig) -> None:
    """It has begun again, and the gateway has not heard of it, when the store hears of the reader."""
    stream, claim = await _begun(rig)
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    rig.is_cut = True
    again = await _again(rig, claim)
    rig.is_cut = False
    reader = rig.relay.read(await rig.relay.attach(stream.job.id, record))
    assert reader.fresh() == (0, [])
    await rig.tokens(again, 0, "x")
    assert reader.fresh() == (0, ["x"])
    assert (await _again(rig, again)).tokens == ("x",)


async def test_a_reader_at_another_gateway_gets_nothing_of_what_is_void(rig: Rig) -> None:
    stream, claim = await _begun(rig)
    other = Relay("g2", rig.transport, max_depth=2)
    await rig.transport.listen("g2", other.deliver, other.invalidate_all)
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    again = await _again(rig, claim)
    reader = other.read(await other.attach(stream.job.id, record))
    assert reader.fresh() == (0, [])
    await rig.tokens(again, 0, "x")
    assert reader.fresh() == (0, ["x"])
    assert (await _again(rig, again)).tokens == ("x",)
    assert stream.tokens == ["x"]


async def test_a_reader_that_the_store_does_not_hear_of_gets_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, claim = await _begun(rig)
    record = await rig.transport.read(stream.job.id)
    assert record is not None

    async def away(job_id: str) -> int:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(rig.transport, "mark_read", away)
        with pytest.raises(StoreUnavailable):
            await rig.relay.attach(stream.job.id, record)
    again = await _again(rig, claim)
    assert stream.tokens == []
    await rig.tokens(again, 0, "x")
    await rig.relay.attach(stream.job.id, record)
    assert (await _again(rig, again)).tokens == ("x",)


async def test_the_same_post_at_another_gateway_reads_nothing_before_the_end(rig: Rig) -> None:
    stream, claim = await _begun(rig)
    other = Relay("g2", rig.transport, max_depth=2)
    await rig.transport.listen("g2", other.deliver, other.invalidate_all)
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    followed = await other.attach(stream.job.id, record, is_read=False)
    await other.drain()
    assert followed.tokens == ["a", "b"]
    again = await _again(rig, claim)
    assert again.tokens == ()
    await rig.tokens(again, 0, "x")
    await rig.done(again, 1)
    assert (stream.tokens, followed.tokens) == (["x"], ["x"])


@pytest.mark.parametrize("is_read", [False, True])
async def test_what_is_given_back_to_the_store_begins_again_if_it_was_not_read(rig: Rig, is_read: bool) -> None:
    stream, claim = await _begun(rig)
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    if is_read:
        await rig.relay.attach(stream.job.id, record)
    forget(rig.transport, "jobs", "lists")
    rig.relay.invalidate_all()
    await wait_until(lambda: len(rig.transport.snapshot().queue) == 1, "it was pushed again")
    claim = await rig.claim()
    assert claim.tokens == ("a", "b")
    assert (await _again(rig, claim)).tokens == (("a", "b") if is_read else ())


async def test_a_mark_that_the_store_has_lost_costs_no_client_its_tokens(rig: Rig) -> None:
    """It came back without its last moments: the answer began again, and its gateway gives back what was read."""
    stream, claim = await _begun(rig)
    record = await rig.transport.read(stream.job.id)
    assert record is not None
    reader = rig.relay.read(await rig.relay.attach(stream.job.id, record))
    assert reader.fresh() == (0, ["a", "b"])
    with changing(rig.transport) as state:
        state.jobs[stream.job.id].is_unread = True
    assert (await _again(rig, claim)).tokens == ()
    await rig.relay.drain()
    claim = await rig.claim()
    assert claim.tokens == ("a", "b")
    assert (await _again(rig, claim)).tokens == ("a", "b")
    assert stream.tokens == ["a", "b"]
