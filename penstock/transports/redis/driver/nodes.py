"""Commands to the nodes of a Redis Cluster, and what to do when a node replies that a slot is elsewhere.

`MOVED`, `ASK` and `TRYAGAIN` mean that nothing was executed: only those commands of a pipeline are sent again, where
the reply points to. What fails otherwise fails for the caller, as with one server, and makes the map be read again.
Knows of commands only how to tell one from the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import Reader, ReplyError, pack_command

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.cluster import Cluster
from penstock.transports.redis.driver.connection import COMMAND_TIMEOUT_S, Connection, ServerConnection
from penstock.transports.redis.driver.endpoint import Endpoint
from penstock.transports.redis.driver.link import Link, Reply, StoreMetrics

REDIRECTED_WITHIN_S = 1.5
AGAIN_S = 0.025

_ELSEWHERE = ("MOVED ", "ASK ", "TRYAGAIN")
_ASKING: bytes = pack_command(("ASKING",))


class Nodes:
    """The connections to the nodes, each made at its first use."""

    def __init__(
        self, cluster: Cluster, name: str, metrics: StoreMetrics, preload: Sequence[tuple[Any, ...]] = ()
    ) -> None:
        self.cluster = cluster
        self._name = name
        self._metrics = metrics
        self._preload = preload
        self._nodes: dict[Endpoint, NodeConnection] = {}

    def to(self, slot: int) -> Connection:
        """The node that serves `slot`; while it is not known, a connection that looks it up."""
        owner = self.cluster.owner(slot)
        return Lost(self, slot) if owner is None else self.at(owner)

    def at(self, endpoint: Endpoint) -> NodeConnection:
        node = self._nodes.get(endpoint)
        if node is None:
            server = ServerConnection(endpoint, self._name, self._metrics, self._preload)
            node = self._nodes[endpoint] = NodeConnection(self, endpoint, server)
        return node

    def keep(self, masters: Sequence[Endpoint]) -> None:
        """Close connections to nodes that are no longer masters; one that is still needed is opened again."""
        for endpoint, node in self._nodes.items():
            if endpoint not in masters:
                node.server.redial("the node is no longer a master")

    async def close(self) -> None:
        for node in self._nodes.values():
            await node.server.close()


class NodeConnection:
    """Commands to one node, and to the nodes that it redirects them to."""

    def __init__(self, nodes: Nodes, endpoint: Endpoint, server: ServerConnection) -> None:
        self._nodes = nodes
        self._endpoint = endpoint
        self.server = server

    async def execute(self, data: bytes, count: int, timeout_s: float = COMMAND_TIMEOUT_S) -> list[Reply]:
        try:
            replies = await self.server.execute(data, count, timeout_s)
        except StoreUnavailable:
            self._nodes.cluster.suspect()  # it may be dead, and another one in its place
            raise
        if any(map(_is_elsewhere, replies)):
            await self._follow(data, replies, timeout_s)
        return replies

    @property
    def link(self) -> Link | None:
        return self.server.link

    async def connect(self) -> Link:
        try:
            return await self.server.connect()
        except StoreUnavailable:
            self._nodes.cluster.suspect()
            raise

    def post(self, data: bytes, count: int) -> None:
        sent = self.server.send(data, count)
        if sent is not None:
            sent.add_done_callback(self._posted)

    def _posted(self, sent: asyncio.Future[list[Reply]]) -> None:
        if not sent.cancelled() and (sent.exception() or any(map(_is_elsewhere, sent.result()))):
            self._nodes.cluster.suspect()

    async def _follow(self, data: bytes, replies: list[Reply], timeout_s: float) -> None:
        """Send again what was not executed, in its order, until every reply is an answer; updates `replies`."""
        packed = _split(data)
        loop = asyncio.get_running_loop()
        until, teller = loop.time() + REDIRECTED_WITHIN_S, [self._endpoint] * len(replies)
        num_rounds = 0
        while elsewhere := [index for index, reply in enumerate(replies) if _is_elsewhere(reply)]:
            if loop.time() > until:
                raise StoreUnavailable(f"Redis refused for {REDIRECTED_WITHIN_S:g} s: {replies[elsewhere[0]]}")
            groups: dict[NodeConnection, list[tuple[int, bool]]] = {}
            for index in elsewhere:
                node, is_asking = self._where(str(replies[index]), teller[index])
                groups.setdefault(node, []).append((index, is_asking))
            if num_rounds > 1 or self._nodes.at(teller[elsewhere[0]]) in groups:  # they do not agree yet
                await asyncio.sleep(AGAIN_S)
            num_rounds += 1
            for node, items in groups.items():
                again = b"".join((_ASKING if is_asking else b"") + packed[index] for index, is_asking in items)
                got = iter(await node.server.execute(again, sum(1 + asking for _, asking in items), timeout_s))
                for index, is_asking in items:
                    if is_asking:
                        next(got)
                    replies[index], teller[index] = next(got), node._endpoint

    def _where(self, reply: str, teller: Endpoint) -> tuple[NodeConnection, bool]:
        """`MOVED slot host:port` and `ASK …` name a node (without a host: at the teller's); TRYAGAIN means this one."""
        kind, *rest = reply.split(" ")
        if kind == "TRYAGAIN":
            return self._nodes.at(teller), False
        slot, address = int(rest[0]), rest[1]
        host, _, port = address.rpartition(":")
        endpoint = teller.at(host or teller.host, int(port))
        if kind == "MOVED":
            self._nodes.cluster.moved(slot, endpoint)
        return self._nodes.at(endpoint), kind == "ASK"


class Lost:
    """A slot whose node is not known: looks it up first. Equal to nothing, so that nothing is sent along with it."""

    def __init__(self, nodes: Nodes, slot: int) -> None:
        self._nodes = nodes
        self._slot = slot

    async def execute(self, data: bytes, count: int, timeout_s: float = COMMAND_TIMEOUT_S) -> list[Reply]:
        return await (await self._find()).execute(data, count, timeout_s)

    async def connect(self) -> Link:
        return await (await self._find()).connect()

    @property
    def link(self) -> None:
        return None

    def post(self, data: bytes, count: int) -> None:
        """Nothing is sent without a connection."""

    async def _find(self) -> Connection:
        await self._nodes.cluster.refresh()
        node = self._nodes.to(self._slot)
        if isinstance(node, Lost):
            raise StoreUnavailable(f"Redis is away: no node of {self._nodes.cluster} serves slot {self._slot}")
        return node


def _is_elsewhere(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith(_ELSEWHERE)


def _split(data: bytes) -> list[bytes]:
    """The commands of a pipeline, each packed."""
    reader = Reader()
    reader.feed(data)
    commands = []
    while (words := reader.gets()) is not False:
        commands.append(pack_command(tuple(words)))
    return commands
