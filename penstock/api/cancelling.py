"""Cancel all waiting and running requests of one caller. The revocation of its key does not end them.

It reads the summaries of the caller's newest requests, of the queue and of the requests that workers hold. The `MAX_`
constants bound how many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from penstock.transports.base import GatewayStore, OperatorStore

MAX_LISTED = 1000
MAX_WAITING = 10_000
MAX_HELD = 10_000
LOOK_AT_ONCE = 200
CANCEL_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class CancelCounts:
    """`ended`: waiting requests, which have ended. `marked`: running ones; each ends when its worker learns of it."""

    ended: int
    marked: int


async def cancel_all(store: GatewayStore, operators: OperatorStore, caller_id: str) -> CancelCounts:
    """Raises `StoreUnavailable`; safe to repeat."""
    found = []
    for some in _chunks(await _candidates(operators, caller_id), LOOK_AT_ONCE):
        for one in await operators.read_summary(some):
            if one is not None and one.caller == caller_id and one.state != "done":
                found.append(one.id)
    outcomes: list[str] = []
    for some in _chunks(found, CANCEL_AT_ONCE):
        outcomes += await asyncio.gather(*(store.cancel(job_id, "operator") for job_id in some))
    return CancelCounts(outcomes.count("ended"), outcomes.count("marked"))


async def _candidates(operators: OperatorStore, caller_id: str) -> list[str]:
    """Ids of unfinished requests that may be the caller's. Its own list has only the newest, so others are read too."""
    mine = await operators.requests_of(caller_id, MAX_LISTED)
    waiting = await operators.waiting(MAX_WAITING)
    workers = (await operators.overview()).workers
    held = islice((job_id for holding in workers for job_id in holding.held), MAX_HELD)
    return list(dict.fromkeys([*mine, *waiting, *held]))


def _chunks(ids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]
