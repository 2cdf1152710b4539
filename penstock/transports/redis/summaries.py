"""The part of a request that lists show, in Redis: the field that has it, and replies of `read_summary`. Pure."""

from __future__ import annotations

import logging
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from penstock.errors import InternalError
from penstock.event import Done, Failed, Terminal
from penstock.job import Job
from penstock.transports.base import JobSummary
from penstock.transports.redis.records import missing_end
from penstock.wire import WireError, decode_event, decode_json, encode_json

log = logging.getLogger(__name__)


class Details(Struct, frozen=True, omit_defaults=True):
    """The part of a job that lists show, except its state: a small field, so that no list reads a whole job."""

    caller: str = ""
    user: str = ""
    metadata: dict[str, str] = {}


def about(job: Job) -> bytes:
    return encode_json(Details(job.caller, job.user, job.metadata))


def summary_of(job_id: str, reply: list[Any]) -> JobSummary | None:
    try:
        return _read(job_id, reply)
    except ValueError as error:  # one broken request must not fail the list
        log.warning("request %s cannot be read: %s", job_id, error)
        return None


def _read(job_id: str, reply: list[Any]) -> JobSummary:
    *words, end = reply
    model, about, state, worker, claims, deaths, created, deadline, started, first, ended, now, num_tokens = words
    known_state: Any = state.decode()
    known = decode_json(about or b"{}", Details)
    return JobSummary(
        id=job_id,
        model=(model or b"").decode(),
        caller=known.caller,
        user=known.user,
        metadata=known.metadata,
        state=known_state,
        worker=(worker or b"").decode(),
        num_claims=int(claims or 0),
        num_deaths=int(deaths or 0),
        created_at=int(created or 0) / 1000,
        deadline_at=int(deadline or 0) / 1000,
        started_at=int(started or 0) / 1000,
        first_token_at=int(first or 0) / 1000,
        ended_at=int(ended or 0) / 1000,
        now=int(now) / 1000,
        num_tokens=int(num_tokens),
        end=_end(job_id, end) if known_state == "done" else None,
    )


def _end(job_id: str, frame: bytes) -> Terminal:
    """The terminal frame without its tokens; an error in place of one that cannot be read."""
    try:
        end = decode_event(frame)
    except WireError:
        return Failed.of(job_id, 0, 0, InternalError("A part of this request's log cannot be read."))
    return replace(end, tokens=()) if isinstance(end, Done | Failed) else missing_end(job_id, end.attempt, end.seq)
