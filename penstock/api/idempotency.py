"""`Idempotency-Key`: the same POST twice is one request. The second attaches to the first, running or finished.

Same caller only. The key is bound in the store before the request is submitted, and freed if that is refused. What a
key names is part of the request (`Job.once`), so a gateway that gives a request back to a store that has lost it binds
its key again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from typing import Any

from fastapi import Request
from msgspec.structs import replace

from penstock.errors import IdempotencyConflict, InvalidRequest, StoreUnavailable
from penstock.event import Done, Failed, fold
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.connection import header
from penstock.http.edge import Call
from penstock.job import Job, new_ulid
from penstock.transports.base import Record

HEADER = b"idempotency-key"
PENDING_S = 3.0  # a gateway gives a submission up after 2 s
MAX_WAIT_S = 8.0
_TRY_S = 0.05
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def idempotency_key(request: Request) -> str | None:
    """The client's key, if it sent one. Raises `InvalidRequest`."""
    key = header(request.scope, HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest("An idempotency key is 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    return key


def hash_of(endpoint: str, body: dict[str, Any]) -> str:
    """A hash that is equal for equal POSTs: of the route and the JSON, in any order of its keys."""
    return hashlib.sha256(json.dumps([endpoint, body], sort_keys=True).encode()).hexdigest()


async def submit_once(
    gateway: Gateway, call: Call, job: Job, endpoint: str, key: str, body_hash: str, rate_key: str
) -> Reader:
    """Submit `job`, or attach to the request that this key already names. Raises `IdempotencyConflict`.

    A key holds as long as its request: one whose request has expired, or was cancelled, is bound to `job` instead.
    What the key names is read whole, whatever this body is, and takes a turn of `rate_key`.
    """
    job = replace(job, once=f"{hashlib.sha256(key.encode()).hexdigest()[:32]} {body_hash}")
    relay = gateway.relay
    keep_s = job.timeout_s + relay.keeper.retention_of(job)
    until = time.monotonic() + MAX_WAIT_S
    instead_of = ""
    while time.monotonic() < until:
        bound = None
        named = relay.named(job)
        asked_at = time.monotonic()
        if not named or named == instead_of:
            await relay.keeper.settle(until)  # a free key proves nothing while the store has lost bound ones
            asked_at = time.monotonic()
            bound = await relay.keeper.bind(job, keep_s, instead_of)
            named = "" if bound is None else bound.job_id
        if not named:
            reader = await _submit(gateway, job, endpoint)
            if time.monotonic() - asked_at < PENDING_S / 2 or await relay.keeper.bind(job, keep_s) is None:
                return reader
            relay.leave(reader, is_delivered=False)  # this took so long that another client has the key now
            relay.abandon(reader.stream)
            # In this gateway the key may still name the abandoned request: `instead_of` excludes it. The next try
            # has a new id, as the store may know the old one.
            instead_of, job = job.id, replace(job, id=f"{gateway.id}.{new_ulid()}")
            continue
        record = await relay.known(named)
        if record is None:
            async with gateway.turns.of(rate_key):
                record = await relay.look_up(named)
        if record is not None and not _is_worth_another(record):
            first_hash = record.job.once.partition(" ")[2] if bound is None else bound.body_hash
            if first_hash != body_hash:
                error = IdempotencyConflict("This idempotency key was used with another request body.")
                error.headers = {"x-should-retry": "false"}
                raise error
            call.headers["idempotent-replayed"] = "true"
            # The same POST: its answer is streamed if the first one's is, and that is known to the store already.
            return relay.read(await relay.attach(named, record, is_read=False))
        if record is None and bound is not None and bound.age_s < PENDING_S:
            await asyncio.sleep(_TRY_S)  # bound, but not created yet: the first request is being submitted
        else:
            instead_of = named
    raise StoreUnavailable("The request of this idempotency key is not to be found just now.", retry_after_s=1.0)


async def _submit(gateway: Gateway, job: Job, endpoint: str) -> Reader:
    try:
        return await gateway.submit(job, endpoint)
    except BaseException:
        with contextlib.suppress(StoreUnavailable):  # if so, the key is freed once its request is found to be missing
            await asyncio.shield(gateway.store.unbind_key(job))
        raise


def _is_worth_another(record: Record) -> bool:
    """Whether it was cancelled, or failed with a retryable error: then its key may be bound to a new request."""
    end = fold(record.events).end
    if isinstance(end, Failed):
        return end.error().retryable
    return isinstance(end, Done) and end.finish_reason == "cancelled"
