"""The streams that a gateway holds, by id and by idempotency key, those among them that are just being opened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from penstock.gateway.relay.stream import RelayStream
from penstock.job import Job

MAX_PER_S = 10  # of each kind of repair that asks the store to change something


class StreamTable:
    """`streams` is for its relay alone to read; what enters does so by `hold`, and leaves by `remove`."""

    def __init__(self) -> None:
        self.streams: dict[str, RelayStream] = {}
        self._opening: dict[str, asyncio.Event] = {}
        self._named: dict[tuple[str, str], str] = {}

    async def find(self, job_id: str) -> RelayStream | None:
        """The stream of this id. One that is just being opened is waited for: it may yet come to nothing."""
        while (opening := self._opening.get(job_id)) is not None:
            await opening.wait()
        return self.streams.get(job_id)

    def named(self, job: Job) -> str:
        """The request that the idempotency key of `job` names, as far as this gateway knows; "" for none."""
        return self._named.get(_key_of(job), "")

    def hold(self, stream: RelayStream) -> _Opening:
        """Around what opens a stream: it is heard from the start, and read by others once the block has gone well."""
        return _Opening(self, stream, self._opening, self._named)

    def remove(self, stream: RelayStream) -> bool:
        """It is held no more, nor measured. False if it was not held."""
        if stream.meter is not None:
            stream.meter.leave()
        if self.streams.get(stream.job.id) is not stream:
            return False
        del self.streams[stream.job.id]
        return True

    def expire(self, remembered: Collection[str]) -> None:
        """Forget the keys of requests that are neither held nor `remembered`."""
        known = self.streams.keys() | remembered
        self._named = {key: job_id for key, job_id in self._named.items() if job_id in known}


class _Opening:
    """A context manager, and no generator, as every request goes through it."""

    __slots__ = ("_event", "_named", "_opening", "_stream", "_table")

    def __init__(
        self,
        table: StreamTable,
        stream: RelayStream,
        opening: dict[str, asyncio.Event],
        named: dict[tuple[str, str], str],
    ) -> None:
        self._table, self._stream, self._opening, self._named = table, stream, opening, named
        self._event = asyncio.Event()

    def __enter__(self) -> None:
        job = self._stream.job
        self._opening[job.id] = self._event
        self._table.streams[job.id] = self._stream
        if job.once:
            self._named[_key_of(job)] = job.id

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            if self._stream.meter is not None:
                self._stream.meter.drop()
            self._table.remove(self._stream)
        del self._opening[self._stream.job.id]
        self._event.set()


class Budget:
    """At most `MAX_PER_S` of each kind in a second."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[int, int]] = {}

    def may(self, kind: str) -> bool:
        second = int(time.monotonic())
        began, used = self._used.get(kind, (second, 0))
        used = used if began == second else 0
        self._used[kind] = (second, used + 1)
        return used < MAX_PER_S


def _key_of(job: Job) -> tuple[str, str]:
    return job.caller, job.once.partition(" ")[0]
