"""Jobs and events to bytes and back: the only serialiser. Versioned; JSON; no I/O.

An event's bytes are the frame that `docs/protocol.md` describes. A field that this version does not know is ignored,
so that a newer peer may add one; an unknown `kind` or a newer job version is a `WireError`, never a guess.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.event import Event
from penstock.job import Job

WIRE_VERSION = 1


class WireError(ValueError):
    """Bytes that are not a frame, or not of a version that this process speaks."""


class _Envelope(msgspec.Struct, frozen=True):
    v: int
    job: Job


_encoder = msgspec.json.Encoder()
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_job_decoder = msgspec.json.Decoder(_Envelope)

encode_event = _encoder.encode
encode_json = _encoder.encode


def decode_event(data: bytes) -> Event:
    try:
        return event_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not a frame: {error}") from error


def encode_job(job: Job) -> bytes:
    return _encoder.encode(_Envelope(WIRE_VERSION, job))


def decode_job(data: bytes) -> Job:
    try:
        envelope = _job_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not a job: {error}") from error
    if envelope.v > WIRE_VERSION:
        raise WireError(f"job version {envelope.v} is newer than this process speaks ({WIRE_VERSION})")
    return envelope.job


def decode_json(data: bytes, kind: type[Any]) -> Any:
    """Decode one of our own small JSON objects (a worker's `about`) into `kind`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error
