"""A stream as a record of the store, or as an outcome to give to a store; and back. Pure."""

from __future__ import annotations

import time

import msgspec

from penstock.errors import RequestPoisoned
from penstock.event import Failed, Terminal, Tokens
from penstock.gateway.relay.stream import RelayStream
from penstock.transports.base import Outcome, Record


def is_dead(stream: RelayStream) -> bool:
    """It ended several workers."""
    return isinstance(stream.end, Failed) and stream.end.code == RequestPoisoned.code


def outcome_of(stream: RelayStream, end: Terminal, keep_s: float, now: float) -> Outcome:
    """How a stream ended, in the form that a store takes."""

    def ago(at: float) -> float | None:
        return now - at if at else None

    return Outcome(
        job=stream.job.kept(),
        attempt=stream.attempt,
        tokens=stream.tokens,
        end=msgspec.structs.replace(end, seq=len(stream.tokens), tokens=()),
        keep_s=max(1.0, keep_s),
        created_ago_s=now - stream.submitted_at,
        started_ago_s=ago(stream.started_at),
        first_token_ago_s=ago(stream.first_token_at),
        ended_ago_s=ago(stream.ended_at) or 0.0,
    )


def record_of(stream: RelayStream, owner: str, now: float, wall: float) -> Record:
    """A stream as a store would show it. `now`: monotonic; `wall`: the same moment, seconds since 1970."""

    def at(moment: float) -> float:
        return wall - now + moment if moment else 0.0

    job, attempt = stream.job, stream.attempt
    tokens = () if not stream.tokens else (Tokens(job.id, attempt, 0, tokens=tuple(stream.tokens)),)
    end = () if stream.end is None else (msgspec.structs.replace(stream.end, attempt=attempt),)
    return Record(
        job=job,
        state="done" if stream.end is not None else "running" if stream.is_started else "queued",
        attempt=attempt,
        owner=owner,
        num_claims=int(stream.is_started),
        created_at=at(stream.submitted_at),
        deadline_at=at(stream.deadline_at),
        started_at=at(stream.started_at),
        first_token_at=at(stream.first_token_at),
        ended_at=at(stream.ended_at),
        now=wall,
        cancel=stream.cancel or "",
        events=(*tokens, *end),
    )


def num_tokens(record: Record, held: RelayStream | None) -> int:
    """How many tokens there have been: the larger of what the record and a stream of the same request hold."""
    relayed = 0 if held is None else len(held.tokens)
    return max(relayed, max((event.end for event in record.events), default=0))


def stream_of(record: Record) -> RelayStream:
    """A stream as the store knows it; its times on this process' clock."""
    shift = time.monotonic() - record.now
    stream = RelayStream(record.job, None, record.created_at + shift)
    stream.deadline_at = record.deadline_at + shift
    stream.heard_at = stream.asked_at = record.now + shift
    stream.started_at = record.started_at + shift if record.started_at else 0.0
    stream.first_token_at = record.first_token_at + shift if record.first_token_at else 0.0
    stream.ended_at = record.ended_at + shift if record.ended_at else 0.0
    return stream
