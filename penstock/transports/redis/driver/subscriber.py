"""The one connection of a process that only receives: a gateway's events, a worker's hints.

Supervised: it subscribes again by itself after every break, and then calls `on_reset`, because what was published in
between is lost. A PING that is not answered in time counts as broken. Commands never share this
connection. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hiredis import ReplyError

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.command import command
from penstock.transports.redis.driver.connection import MAX_BACKOFF_S
from penstock.transports.redis.driver.endpoint import Endpoint, Locator
from penstock.transports.redis.driver.link import NOT_YET, Link, Reply, StoreMetrics, let_in

log = logging.getLogger(__name__)

PING_EVERY_S = 2.0
PONG_WITHIN_S = 5.0
CONFIRM_WITHIN_S = 5.0
REDIAL_EVERY_S = 1.0

_PING = command("PING").packed
OnMessage = Callable[[bytes, bytes], None]


class _SubscribedLink(Link):
    """A link in subscribed mode: once greeted, what arrives is pushed, not asked for."""

    def __init__(self, metrics: StoreMetrics, on_push: Callable[[list[Reply]], None]) -> None:
        super().__init__(metrics)
        self._on_push = on_push
        self.is_greeted = False
        self.heard_at = self._loop.time()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        super().data_received(data)

    def read(self, gets: Callable[[], Reply]) -> None:
        if not self.is_greeted:
            super().read(gets)
            return
        while not self.closed.done() and (reply := gets()) is not NOT_YET:
            if type(reply) is list:
                self._on_push(reply)
            elif isinstance(reply, ReplyError):
                self.abort(f"Redis refused a subscription: {reply}", "refused")


class Subscriber:
    """Channels and patterns with their handlers, kept subscribed until `close`.

    A handler gets the channel and the message, must not block, and is called in order of arrival. If it raises, that
    is logged and counted, and the next message is handled all the same.
    """

    def __init__(self, locator: Locator, name: str, metrics: StoreMetrics) -> None:
        self._locator = locator
        self._name = name
        self._metrics = metrics
        self._handlers: dict[bytes, tuple[str, OnMessage, Callable[[], None] | None]] = {}
        self._confirmed: set[bytes] = set()
        self._ever: set[bytes] = set()
        self._changed = asyncio.Event()
        self._link: _SubscribedLink | None = None
        self.endpoint: Endpoint | None = None
        self._stands_since = 0.0
        self._task: asyncio.Task[None] | None = None

    def has(self, topic: str) -> bool:
        """Whether the subscription to this channel or pattern is confirmed right now."""
        link, task = self._link, self._task
        return (
            link is not None
            and link.is_open
            and task is not None
            and not task.done()
            and topic.encode() in self._confirmed
        )

    async def subscribe(
        self, topic: str, on_message: OnMessage, on_reset: Callable[[], None] | None = None, *, is_pattern: bool = False
    ) -> None:
        """Subscribe, and return when it is confirmed; `StoreUnavailable` if it is not in time (it keeps trying)."""
        self._handlers[topic.encode()] = ("PSUBSCRIBE" if is_pattern else "SUBSCRIBE", on_message, on_reset)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name="redis-subscription")
        elif self._link is not None and self._link.is_open:
            self._ask(self._link, [topic.encode()])
        try:
            async with asyncio.timeout(CONFIRM_WITHIN_S):
                while not self.has(topic):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise StoreUnavailable(f"Redis is away: no subscription at {self._locator}") from None

    def unsubscribe(self, topic: str) -> None:
        """Unsubscribe. Not awaited: messages that still arrive are ignored."""
        if self._handlers.pop(topic.encode(), None) is not None and self._link is not None and self._link.is_open:
            self._confirmed.discard(topic.encode())
            self._link.write(command("UNSUBSCRIBE", topic).packed)
        self._ever.discard(topic.encode())

    def redial(self, reason: str, unless: Endpoint | None = None) -> None:
        """Break the connection, so that its server is looked for again; not if it leads to `unless`.

        At most once a second: everything that is open is read again after each.
        """
        link = self._link
        if link is not None and link.is_open and self.endpoint != unless:
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._stands_since + REDIAL_EVERY_S), link.abort, reason, "moved")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._handlers.clear()

    # ── below ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        backoff_s = 0.0
        while True:
            await asyncio.sleep(backoff_s)
            backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s or 0.02)
            link = _SubscribedLink(self._metrics, self._heard)
            try:
                self.endpoint = await self._locator.locate()
                await let_in(self.endpoint, link, self._name)
                link.is_greeted = True
                await self._resubscribe(link)
                backoff_s = 0.02
                await self._listen(link)
            except (StoreUnavailable, TimeoutError) as error:
                log.warning("the subscription is down: %s", error or "not confirmed in time")
            except Exception:  # a bug: without this reader the process would receive nothing, so log it and go on
                log.exception("the subscription has failed; it begins again")
                self._metrics.store_error("subscription")
            finally:
                link.close()
                self._link = None
                self._confirmed.clear()

    async def _resubscribe(self, link: _SubscribedLink) -> None:
        # Patterns last: when a pattern is confirmed again and reported, every channel is confirmed already.
        wanted = sorted(self._handlers, key=lambda topic: self._handlers[topic][0] == "PSUBSCRIBE")
        self._link = link
        self._stands_since = asyncio.get_running_loop().time()
        link.closed.add_done_callback(lambda _: self._changed.set())
        self._ask(link, wanted)
        async with asyncio.timeout(CONFIRM_WITHIN_S):
            while not self._confirmed.issuperset(self._handlers.keys() & wanted):
                if not link.is_open:
                    raise StoreUnavailable("Redis closed the subscription")
                self._changed.clear()
                await self._changed.wait()

    async def _listen(self, link: _SubscribedLink) -> None:
        """Until the link is lost. It is lost as well when a PING brings nothing in time."""
        loop = asyncio.get_running_loop()
        while link.is_open:
            link.write(_PING)
            await asyncio.wait([link.closed], timeout=PING_EVERY_S)
            if loop.time() - link.heard_at > PONG_WITHIN_S:
                link.abort("the subscription did not answer a PING", "timeout")
        raise StoreUnavailable("the connection was lost")

    def _ask(self, link: _SubscribedLink, topics: list[bytes]) -> None:
        for topic in topics:
            link.write(command(self._handlers[topic][0], topic).packed)

    def _heard(self, push: list[Reply]) -> None:
        kind = push[0]
        if kind == b"pmessage":  # once a frame: as few calls as can be
            handler = self._handlers.get(push[1])
            if handler is not None:
                try:
                    handler[1](push[2], push[3])
                except Exception:
                    self._failed(push[2])
            return
        if kind == b"message":
            self._deliver(push[1], push[1], push[2])
        elif kind in (b"subscribe", b"psubscribe"):
            self._confirm(push[1])

    def _confirm(self, topic: bytes) -> None:
        """A topic confirmed for the second time has missed messages: call `on_reset` before the next message."""
        handler = self._handlers.get(topic)
        if handler is None:  # given up in the meantime
            return
        self._confirmed.add(topic)
        self._changed.set()
        on_reset = handler[2]
        if topic in self._ever and on_reset is not None:
            log.warning("subscribed again at %s", self.endpoint)
            self._guard(lambda _: on_reset(), topic)
        self._ever.add(topic)

    def _deliver(self, topic: bytes, channel: bytes, message: bytes) -> None:
        handler = self._handlers.get(topic)
        if handler is not None:
            self._guard(handler[1], channel, message)

    def _guard(self, function: Callable[..., None], *args: bytes) -> None:
        try:
            function(*args)
        except Exception:
            self._failed(args[0])

    def _failed(self, channel: bytes) -> None:
        """A handler raised: log and count it, and go on with the next message."""
        log.exception("a message on %s could not be handled", channel.decode(errors="replace"))
        self._metrics.store_error("message")
