"""Server-Sent Events: to bytes and back. No I/O; used by the API, the client and backends that read a stream.

The format is that of the HTML Living Standard, section 9.2. `Decoder` accepts any split of the bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LINE_BYTES = 4 * 1024 * 1024

KEEPALIVE = b": keep-alive\n\n"


class SSEError(ValueError):
    """The peer's bytes are not an event stream, or a line or an event is too long."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event as the client sees it. `id` is the last id so far, as the standard requires."""

    event: str
    data: str
    id: str = ""


# JSON does not escape these, and clients that split lines as Python's `str.splitlines` does would cut an event at them.
_BREAKS = re.compile(b"\xc2\x85|\xe2\x80[\xa8\xa9]")


def unbroken(frames: bytes) -> bytes:
    """The same events, with U+0085, U+2028 and U+2029 escaped; events have them only within strings of JSON."""
    if frames.isascii() or (b"\xe2\x80" not in frames and b"\xc2\x85" not in frames):
        return frames
    return _BREAKS.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), frames)


def frame(event: str, data: bytes, event_id: str = "") -> bytes:
    """One event. None of the arguments may contain a line break; JSON and Penstock's names and ids have none."""
    head = f"id: {event_id}\n".encode() if event_id else b""
    return b"%sevent: %s\ndata: %s\n\n" % (head, event.encode(), data)


class Decoder:
    """Decodes bytes to events, each as soon as it is whole. `max_bytes`: limit of a line, and of an event's data."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._buffer = bytearray()
        self._skip_lf = False
        self._at_start = True
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Raises `SSEError` for a line, or an event, that is too long."""
        if not chunk:
            return []
        buffer = self._buffer
        buffer += chunk
        events: list[ServerEvent] = []
        start = 0
        size = len(buffer)
        if self._skip_lf:
            start = 1 if buffer[0] == 10 else 0
            self._skip_lf = False
        cr = buffer.find(b"\r", start)
        while True:
            if 0 <= cr < start:
                cr = buffer.find(b"\r", start)
            lf = buffer.find(b"\n", start)
            at = min(lf, cr) if lf >= 0 and cr >= 0 else max(lf, cr)
            if at < 0:
                break
            self._line(bytes(buffer[start:at]), events)
            start = at + 1
            if buffer[at] == 13:  # a CR ends the line; an LF behind it belongs to it, and may arrive later
                if start == size:
                    self._skip_lf = True
                elif buffer[start] == 10:
                    start += 1
        del buffer[:start]
        if len(buffer) > self._max_bytes:
            raise SSEError(f"a line of more than {self._max_bytes} bytes")
        return events

    def _line(self, line: bytes, events: list[ServerEvent]) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                events.append(ServerEvent(self._event or "message", "\n".join(self._data), self._id))
            self._event, self._data, self._num_bytes = "", [], 0
            return
        name, _, raw = line.partition(b":")
        value = raw.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._num_bytes += len(line)
            if self._num_bytes > self._max_bytes:
                raise SSEError(f"an event of more than {self._max_bytes} bytes")
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id" and "\0" not in value:
            self._id = value
