"""The memory transport's snapshot: a copy of all that it holds, which it can go back to."""

from __future__ import annotations

import pytest

from penstock.errors import StorageQuota
from penstock.event import Tokens
from penstock.transports.memory import MemoryTransport
from penstock.transports.memory_state import Snapshot
from penstock.transports.quota import Share
from tests.support.stores import new_job, new_worker, run_one

SHARE = Share(max_stored=2)


async def test_a_store_goes_back_to_its_snapshot() -> None:
    store, first, second = MemoryTransport(), new_job(caller="me"), new_job(caller="me")
    await store.enlist(new_worker("w1"))
    await store.submit(first, "g1", 0, share=SHARE)
    older = store.snapshot()
    await store.submit(second, "g1", 0, share=SHARE)
    claim = await run_one(store, "w1", first.id)
    await store.emit("w1", [Tokens(first.id, claim.attempt, 0, tokens=("a",))])
    assert older.queue == [first.id]
    assert older.jobs[first.id].log == []
    store.load(older)
    assert await store.states([first.id, second.id]) == {first.id: "queued"}
    assert await store.waiting() == [first.id]
    assert await store.take("w1", 0) == []
    again = await run_one(store, "w1", first.id)
    assert again.tokens == ()
    assert older.jobs[first.id].state == "queued", "it is a copy of the snapshot that goes on"


async def test_what_is_forgotten_is_not_counted_for_its_caller() -> None:
    store, jobs = MemoryTransport(), [new_job(caller="me") for _ in range(5)]
    for job in jobs[:2]:
        await store.submit(job, "g1", 0, share=SHARE)
    full = store.snapshot()
    store.load(Snapshot())
    await store.submit(jobs[2], "g1", 0, share=SHARE)
    store.load(full)
    with pytest.raises(StorageQuota):
        await store.submit(jobs[3], "g1", 0, share=SHARE)
    store.load(Snapshot())
    for job in jobs[3:]:
        await store.submit(job, "g1", 0, share=SHARE)
