"""One step's events as the bytes of one pipeline: the hot path of a worker.

Each frame becomes `XADD <log> NOMKSTREAM <attempt>-<tokens after it> f <frame>` and `PUBLISH <channel> <frame>`, by
one `%` over a template whose constant parts are kept for each job: a packing call a command would cost more than
everything else here together. Pure.
"""

from __future__ import annotations

from penstock.transports.redis import keys

_MAX_KEPT = 8192


class FramePacker:
    """Packs frames; keeps, for each job it has seen, the parts of its commands that do not change."""

    def __init__(self) -> None:
        self._heads: dict[str, tuple[bytes, bytes]] = {}

    def pack(self, job_id: str, attempt: int, end: int, frame: bytes) -> bytes:
        """XADD and PUBLISH of one frame after which there are `end` tokens: two commands, two replies."""
        head = self._heads.get(job_id)
        if head is None:
            head = self._head(job_id)
        entry = b"%d-%d" % (attempt, end)
        size = len(frame)
        return b"%b$%d\r\n%b\r\n$1\r\nf\r\n$%d\r\n%b\r\n%b$%d\r\n%b\r\n" % (
            head[0],
            len(entry),
            entry,
            size,
            frame,
            head[1],
            size,
            frame,
        )

    def forget(self, job_id: str) -> None:
        self._heads.pop(job_id, None)

    def _head(self, job_id: str) -> tuple[bytes, bytes]:
        if len(self._heads) >= _MAX_KEPT:
            self._heads.clear()
        log, channel = keys.log(job_id).encode(), keys.channel(job_id).encode()
        head = (
            b"*6\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n" % (len(log), log),
            b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n" % (len(channel), channel),
        )
        self._heads[job_id] = head
        return head
