"""A request as its hash and log have it, read into a `Record`. Pure; `ValueError` for what is not the protocol's."""

from __future__ import annotations

import logging
from typing import Any

from penstock.errors import InternalError
from penstock.event import Event, Failed, fold
from penstock.job import Job
from penstock.transports.base import Record
from penstock.wire import WireError, decode_event

log = logging.getLogger(__name__)

FIELDS = (
    *("state", "attempt", "owner", "worker", "claims"),
    *("all_deaths", "created", "deadline", "started", "first", "ended", "cancel"),
)


def events_of(job_id: str, entries: list[Any], num_tokens: int) -> tuple[Event, ...]:
    """The frames of a log, or of its part after `num_tokens`. One that cannot be read ends it with a `Failed`, as its
    tokens are lost."""
    events: list[Event] = []
    for entry, fields in entries:
        try:
            events.append(decode_event(fields[1]))
        except WireError as error:
            log.error("entry %s of the log cannot be read: %s", entry.decode(), error, extra={"request_id": job_id})
            unreadable = InternalError("A part of this request's log cannot be read.")
            attempt = int(entry.partition(b"-")[0])
            events.append(Failed.of(job_id, attempt, events[-1].end if events else num_tokens, unreadable))
            break
    return tuple(events)


def ended(job_id: str, events: tuple[Event, ...]) -> tuple[Event, ...]:
    """The whole log of an ended job. One without a terminal event gets a `Failed`: a reader waits for an end."""
    folded = fold(events)
    if folded.end is not None:
        return events
    return (*events, missing_end(job_id, folded.attempt, len(folded.tokens)))


def missing_end(job_id: str, attempt: int, num_tokens: int) -> Failed:
    error = InternalError("The end of this request is missing from its log.")
    return Failed.of(job_id, attempt, num_tokens, error)


def record_of(job: Job, hash_: list[bytes | None], now: list[bytes], events: tuple[Event, ...]) -> Record:
    state, attempt, owner, worker, claims, deaths, created, deadline, started, first, ended, cancel = hash_
    known_state: Any = (state or b"").decode()
    if known_state not in ("queued", "running", "done"):
        raise ValueError(f"its state is {known_state!r}")
    reason: Any = (cancel or b"").decode()
    return Record(
        job=job,
        state=known_state,
        attempt=int(attempt or 0),
        owner=(owner or b"").decode(),
        worker=(worker or b"").decode(),
        num_claims=int(claims or 0),
        num_deaths=int(deaths or 0),
        created_at=int(created or 0) / 1000,
        deadline_at=int(deadline or 0) / 1000,
        started_at=int(started or 0) / 1000,
        first_token_at=int(first or 0) / 1000,
        ended_at=int(ended or 0) / 1000,
        now=int(now[0]) + int(now[1]) / 1e6,
        cancel=reason,
        events=events,
    )


def number(text: bytes | None) -> int:
    """A number of ours; 0 for none, and for what is not one."""
    return int(text) if text is not None and len(text) < 16 and text.lstrip(b"-").isdigit() else 0
