"""Load clients: many at once, each asking one thing after another, checking every token, coming back where told to."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import msgspec

from penstock.sse import Decoder, ServerEvent
from tests.chaos.http import Cut, Exchange
from tests.chaos.ledger import REFUSALS, Entry

AGAIN_S = 0.05
COME_BACK_WITHIN_S = 30.0
AFTER_REFUSAL_S = 0.2


class Door(Protocol):
    """A gateway, as its clients know it."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What the clients ask for. `comes_back`: a broken stream is taken up again at another gateway."""

    min_tokens: int = 30
    max_tokens: int = 80
    whole_share: float = 0.1
    comes_back: bool = False
    model: str = "mock"


class Load:
    """`doors()` are the gateways that may be asked just now."""

    def __init__(self, doors: Callable[[], Sequence[Door]], rng: random.Random, habits: Habits) -> None:
        self.doors = doors
        self.habits = habits
        self.entries: list[Entry] = []
        self._rng = rng
        self._numbers = count()
        self._exchanges: dict[Entry, Exchange] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_stopping = False

    @property
    def open_entries(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome == "open"]

    def start(self, num: int) -> None:
        """`num` clients, each with one request at a time, until `stop`."""
        for _ in range(num):
            self._keep(asyncio.create_task(self._client()))

    async def stop(self, timeout_s: float) -> None:
        """Ask for nothing more, and wait until what is open has ended; what has not stays open in the ledger."""
        self._is_stopping = True
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def send(
        self, prompt: str = "", max_tokens: int = 0, is_stream: bool = True, may_fail: bool = False, **fields: object
    ) -> Entry:
        """One request more, beside the clients."""
        entry = self._entry(prompt, max_tokens, is_stream)
        entry.may_fail = may_fail
        self._keep(asyncio.create_task(self._ask(entry, fields)))
        return entry

    def join(self, first: Entry) -> Entry:
        """A second reader of a request, from its start; its first one has to know the id already."""
        entry = self._entry(first.prompt, first.max_tokens)
        entry.request_id, entry.is_stream, entry.is_second, entry.num_resumed = first.request_id, True, True, 1
        self._keep(asyncio.create_task(self._ask(entry, {})))
        return entry

    def leave(self, entry: Entry) -> None:
        """Its client hangs up, now."""
        if entry.outcome == "open":
            entry.end("left", "", time.monotonic())
            exchange = self._exchanges.get(entry)
            if exchange is not None:
                exchange.leave()

    # ── one client ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _client(self) -> None:
        await asyncio.sleep(self._rng.random())
        while not self._is_stopping:
            entry = self._entry()
            await self._ask(entry, {})
            if entry.outcome == "refused":
                await asyncio.sleep(AFTER_REFUSAL_S)

    def _entry(self, prompt: str = "", max_tokens: int = 0, is_stream: bool | None = None) -> Entry:
        habits, number = self.habits, next(self._numbers)
        if is_stream is None:
            is_stream = self._rng.random() >= habits.whole_share
        max_tokens = max_tokens or self._rng.randint(habits.min_tokens, habits.max_tokens)
        entry = Entry(prompt or f"request {number}", max_tokens, is_stream)
        self.entries.append(entry)
        return entry

    async def _ask(self, entry: Entry, fields: dict[str, object]) -> None:
        """From the POST to the one end."""
        body = {"model": self.habits.model, "prompt": entry.prompt, "max_tokens": entry.max_tokens}
        body |= {"stream": entry.is_stream, **fields}
        headers = {}
        comes_back = self.habits.comes_back and fields.get("on_disconnect") != "cancel"
        if comes_back:
            headers["idempotency-key"] = f"chaos-{self._rng.getrandbits(64):016x}"
            body.setdefault("on_disconnect", "resume")
        until = time.monotonic() + COME_BACK_WITHIN_S
        method, path = "POST", "/v1/generate"
        if entry.is_second:
            method, path = "GET", f"/v1/requests/{entry.request_id}/events"
        while entry.outcome == "open":
            door = self._door()
            try:
                if door is None:
                    raise Cut("no gateway is open", is_sent=False)
                if method == "POST":
                    entry.gateway = door.name
                    exchange = Exchange(door.url, method, path, body, headers)
                else:
                    position = {"last-event-id": entry.last_event_id} if entry.last_event_id else {}
                    exchange = Exchange(door.url, method, path, headers=position)
                self._exchanges[entry] = exchange
                async with exchange:
                    await self._read(entry, exchange)
                return
            except Cut as cut:
                if entry.outcome != "open":
                    return
                if (cut.is_sent and not comes_back) or time.monotonic() > until:
                    entry.end("cut", str(cut), time.monotonic())
                    return
                if cut.is_sent:
                    entry.num_resumed += 1
                if entry.request_id and entry.is_stream:
                    method, path = "GET", f"/v1/requests/{entry.request_id}/events"
                await asyncio.sleep(AGAIN_S)
            finally:
                self._exchanges.pop(entry, None)

    def _door(self) -> Door | None:
        doors = self.doors()
        return self._rng.choice(doors) if doors else None

    async def _read(self, entry: Entry, exchange: Exchange) -> None:
        entry.request_id = entry.request_id or exchange.headers.get("x-request-id", "")
        if exchange.headers.get("content-type", "").startswith("text/event-stream"):
            await self._follow(entry, exchange)
            return
        body = await exchange.read()
        now = time.monotonic()
        try:
            data = msgspec.json.decode(body)
        except msgspec.DecodeError:
            entry.faults.append(f"status {exchange.status} with a body that is no JSON: {body[:80]!r}")
            entry.end("failed", "no_json", now)
            return
        if entry.outcome != "open":
            return
        if exchange.status == 200:
            entry.whole(data["text"], now)
            return
        code = data["error"]["code"]
        if code in REFUSALS and entry.num_resumed:
            raise Cut(f"not yet: {code}")  # it was admitted before; its client tries again
        entry.end("refused" if code in REFUSALS else "failed", code, now)

    async def _follow(self, entry: Entry, exchange: Exchange) -> None:
        decoder = Decoder()
        async for chunk in exchange.chunks():
            now = time.monotonic()
            if entry.outcome == "left":
                return
            for event in decoder.feed(chunk):
                _see(entry, event, now)
        if entry.outcome == "open":
            entry.faults.append("the stream ended without done or error")
            entry.end("failed", "no_end", time.monotonic())

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)


def _see(entry: Entry, event: ServerEvent, now: float) -> None:
    data = msgspec.json.decode(event.data)
    if data["request_id"] != entry.request_id:
        first = data["request_id"]
        if entry.tokens or not entry.num_resumed:
            entry.faults.append(f"an event of {first}")
        entry.request_id = first  # a repeated POST was attached to the first one's request
    if event.event == "token":
        entry.token(data["index"], data["text"], event.id, now)
    elif event.event == "done":
        entry.end("done", data["finish_reason"], now)
    elif event.event == "error":
        entry.end("failed", data["error"]["code"], now)
