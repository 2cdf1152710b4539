"""`Idempotency-Key`: the same POST twice is one request. The second attaches to the first, running or finished.

Same caller only. The key is bound in the store before the request is submitted, and freed if that is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from fastapi import Request

from penstock.api.connection import header
from penstock.api.edge import Call
from penstock.errors import IdempotencyConflict, InvalidRequest
from penstock.event import Done, Failed, fold
from penstock.job import Job
from penstock.relay import Reader
from penstock.transports.base import Record

if TYPE_CHECKING:
    from penstock.gateway import Gateway

HEADER = b"idempotency-key"
MAX_TRIES = 40
_TRY_S = 0.05
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def idempotency_key(request: Request) -> str | None:
    """The client's key, if it sent one. Raises `InvalidRequest`."""
    key = header(request.scope, HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest("An idempotency key is 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    return key


async def submit_once(gateway: Gateway, call: Call, job: Job, endpoint: str, key: str, body: dict[str, Any]) -> Reader:
    """Submit `job`, or attach to the request that this key already names. Raises `IdempotencyConflict`."""
    body_hash = hashlib.sha256(json.dumps([endpoint, body], sort_keys=True).encode()).hexdigest()
    keep_s = job.timeout_s + (job.retention_s or gateway.settings.retention_s)
    job_id = ""
    for _ in range(MAX_TRIES):
        bound = await gateway.transport.once(job.caller, key, job.id, body_hash, keep_s)
        if bound is None:
            try:
                return await gateway.submit(job, endpoint)
            except BaseException:
                await asyncio.shield(gateway.transport.unbind(job.caller, key, job.id))
                raise
        job_id, first_hash = bound
        if first_hash != body_hash:
            error = IdempotencyConflict("This idempotency key was used with another request body.")
            error.headers = {"x-should-retry": "false"}
            raise error
        stream = await gateway.relay.find(job_id)
        if stream is None and (record := await gateway.transport.read(job_id)) is not None:
            if _is_worth_another(record):
                await gateway.transport.unbind(job.caller, key, job_id)
                continue
            stream = await gateway.relay.attach(job_id, record)
        if stream is not None:
            call.headers["idempotent-replayed"] = "true"
            return gateway.relay.read(stream)
        await asyncio.sleep(_TRY_S)  # bound and not created yet: the first one is just being submitted
    await gateway.transport.unbind(job.caller, key, job_id)  # its request is forgotten
    return await gateway.submit(job, endpoint)


def _is_worth_another(record: Record) -> bool:
    """It was cancelled, or failed in a way that invites another try: then it does not hold its key."""
    end = fold(record.events).end
    if isinstance(end, Failed):
        return end.error().retryable
    return isinstance(end, Done) and end.finish_reason == "cancelled"
