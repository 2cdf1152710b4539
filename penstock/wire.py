"""Jobs and events to bytes and back: the only serialiser. Versioned; JSON; no I/O.

An event's bytes are the frame that `docs/protocol.md` describes. Because newer peers may add to it, a reader ignores
unknown fields, reads an unknown `finish_reason` as `stop` and an unknown `kind` as `tokens`. Everything else that it
cannot read is a `WireError`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.event import Done, Event, Failed, FinishReason, Started, Tokens
from penstock.job import Job

WIRE_VERSION = 1
UNKNOWN_FINISH_REASON: FinishReason = "stop"

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_KINDS = frozenset(event.__struct_config__.tag for event in (Started, Tokens, Done, Failed))


class WireError(ValueError):
    """Bytes that are not a frame, or not a job."""


class NewerJob(WireError):
    """A job of a version that this process cannot read; a newer worker can."""


class _Version(msgspec.Struct, frozen=True):
    v: int


class _Envelope(_Version, frozen=True):
    job: Job


_encoder = msgspec.json.Encoder()
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_job_decoder = msgspec.json.Decoder(_Envelope)

encode_event = _encoder.encode
encode_json = _encoder.encode


def decode_event(data: bytes) -> Event:
    """Decode a frame of any peer, also of a newer one. Raises `WireError`."""
    try:
        return event_decoder.decode(data)
    except UNREADABLE as error:
        return _of_a_newer_peer(data, error)


def check_event(data: bytes) -> None:
    """Raises `WireError` unless this is a frame in the form of this version."""
    try:
        event_decoder.decode(data)
    except UNREADABLE as error:
        raise WireError(f"not a frame: {error}") from error


def _of_a_newer_peer(data: bytes, error: Exception) -> Event:
    """Decode with the fallbacks of the closed enums. Raises `WireError` with the first `error` if it is not a frame."""
    try:
        frame = msgspec.json.decode(data, type=dict[str, Any])
        if frame["kind"] == "done" and isinstance(frame["finish_reason"], str):
            frame["finish_reason"] = UNKNOWN_FINISH_REASON
        elif isinstance(frame["kind"], str) and frame["kind"] not in _KINDS:
            frame["kind"] = "tokens"
        event: Event = msgspec.convert(frame, Event)
    except (*UNREADABLE, KeyError, TypeError):
        raise WireError(f"not a frame: {error}") from error
    return event


def encode_job(job: Job) -> bytes:
    return _encoder.encode(_Envelope(WIRE_VERSION, job))


def decode_job(data: bytes) -> Job:
    """Raises `NewerJob` for a higher version, whatever its other fields are, and `WireError` for what is not a job."""
    try:
        envelope: _Version = _job_decoder.decode(data)
    except UNREADABLE as error:
        try:
            envelope = msgspec.json.decode(data, type=_Version)
        except UNREADABLE:
            envelope = _Version(0)
        if envelope.v <= WIRE_VERSION:
            raise WireError(f"not a job: {error}") from error
    if envelope.v > WIRE_VERSION or not isinstance(envelope, _Envelope):
        raise NewerJob(f"the job's version is {envelope.v}; this process speaks versions up to {WIRE_VERSION}")
    return envelope.job


def decode_json(data: bytes, kind: type[Any]) -> Any:
    """Decode one of Penstock's small JSON objects (a worker's `about`) into `kind`. Raises `WireError`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error
