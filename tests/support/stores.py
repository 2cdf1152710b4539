"""What the contract suite runs over: one store of each kind, and how time passes in it.

To run the suite over a transport of your own, write a `Store` for it and add it to `tests/contract/conftest.py`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import redis

from penstock.event import Event, Tokens
from penstock.fleet import Capabilities, WorkerInfo
from penstock.job import Claim, Job, Sampling
from penstock.transports import Transport
from penstock.transports.memory import MemoryTransport
from penstock.transports.redis import RedisTransport
from tests.simulation.store import ModelStore

LONG_LEASE_S = 30.0
SHORT_LEASE_S = 0.25

_numbers = count(1)


class Store(ABC):
    """A fresh store. `transport()` is one process' way to it, closed by the fixture."""

    name: str

    def __init__(self) -> None:
        self._opened: list[Transport] = []

    @abstractmethod
    def _make(self, lease_s: float) -> Transport: ...

    @abstractmethod
    async def _pass(self) -> None:
        """Let a little time pass."""

    async def transport(self, lease_s: float = LONG_LEASE_S) -> Transport:
        transport = self._make(lease_s)
        await transport.open()
        self._opened.append(transport)
        return transport

    async def until(self, is_true: Callable[[], Awaitable[Any]], message: str, timeout_s: float = 6.0) -> None:
        """Return once `is_true()` is, letting time pass in between; fail with `message` after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not await is_true():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s: {message}"
            await self._pass()

    async def close(self) -> None:
        for transport in self._opened:
            await transport.close()


class MemoryStore(Store):
    """The reference. One instance is the store and every process' way to it; time is ours."""

    name = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_800_000_000.0
        self._transport = MemoryTransport(lease_s=SHORT_LEASE_S, now=lambda: self.now)

    def _make(self, lease_s: float) -> Transport:
        return self._transport

    async def _pass(self) -> None:
        self.now += 0.02
        await asyncio.sleep(0)


class ModelOfStore(MemoryStore):
    """What the simulation runs over. Its watch over tokens is off: what the suite says is no chain."""

    name = "model"

    def __init__(self) -> None:
        super().__init__()
        self._transport = ModelStore(lambda: self.now, lambda text: None, lease_s=SHORT_LEASE_S, retention_s=60.0)


class RedisStore(Store):
    """A real server, or several that are one store: then `clients` look at each that holds keys."""

    def __init__(self, name: str, url: str, clients: Sequence[redis.Redis] = ()) -> None:
        super().__init__()
        self.name = name
        self.url = url
        self.clients = clients

    def _make(self, lease_s: float) -> RedisTransport:
        return RedisTransport(self.url, lease_s=lease_s, retention_s=60.0)

    async def _pass(self) -> None:
        await asyncio.sleep(0.01)


def new_job(gateway: str = "g1", **fields: Any) -> Job:
    fields.setdefault("id", f"{gateway}.{next(_numbers):06}")
    fields.setdefault("model", "m")
    fields.setdefault("prompt", "Say nothing.")
    fields.setdefault("sampling", Sampling(max_tokens=8))
    return Job(**fields)


def new_worker(name: str, **fields: Any) -> WorkerInfo:
    fields.setdefault("models", {"m": Capabilities(accepts=("seed",), max_tokens=100)})
    return WorkerInfo(id=name, num_slots=8, num_free=8, **fields)


def tokens(claim: Claim, seq: int, *texts: str) -> Tokens:
    return Tokens(claim.job.id, claim.attempt, seq, tokens=texts)


class Listener:
    """What a gateway hears."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.num_resets = 0

    def reset(self) -> None:
        self.num_resets += 1

    async def listen(self, transport: Transport, gateway: str = "g1") -> Listener:
        await transport.listen(gateway, self.events.append, self.reset)
        return self


async def run_one(transport: Transport, worker: str, job_id: str) -> Claim:
    """Take and claim exactly this job."""
    assert job_id in await transport.take(worker, 1)
    (claim,) = await transport.claim(worker, [job_id])
    assert claim.job.id == job_id
    return claim
