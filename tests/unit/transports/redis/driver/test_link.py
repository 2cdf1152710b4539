"""How commands leave a process: the first of a turn of the event loop at once, the others of that turn together."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.link import MAX_JOINED, Link, NoMetrics
from tests.support.waiting import wait_until


class Wire:
    """A transport that keeps each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def abort(self) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return None


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def link(wire: Wire) -> Link:
    link = Link(NoMetrics())
    link.connection_made(cast(asyncio.Transport, wire))
    return link


async def test_the_first_of_a_turn_leaves_at_once_and_the_others_together(link: Link, wire: Wire) -> None:
    for turn in (b"a", b"b"):
        wire.writes.clear()
        for number in b"123":
            link.write(b"%s%c" % (turn, number))
        assert wire.writes == [turn + b"1"]
        await asyncio.sleep(0)
        assert wire.writes == [turn + b"1", turn + b"2" + turn + b"3"]


async def test_in_a_long_turn_the_server_is_not_left_idle(link: Link, wire: Wire) -> None:
    for _ in range(2 * MAX_JOINED + 2):
        link.write(b"x")
    assert [len(data) for data in wire.writes] == [1, MAX_JOINED, MAX_JOINED]
    await asyncio.sleep(0)
    assert [len(data) for data in wire.writes] == [1, MAX_JOINED, MAX_JOINED, 1]


async def test_a_lost_link_writes_nothing_and_raises(link: Link, wire: Wire) -> None:
    waiting = link.send(b"a", 1, 1.0)
    link.write(b"b")
    link.connection_lost(None)
    await asyncio.sleep(0)
    link.write(b"c")
    assert wire.writes == [b"a"]
    for future in (waiting, link.send(b"d", 1, 1.0)):
        with pytest.raises(StoreUnavailable):
            await future


async def test_a_posted_command_leaves_with_the_next_command(link: Link, wire: Wire) -> None:
    link.post(b"a", 1, 1.0)
    link.post(b"b", 2, 1.0)
    assert wire.writes == []
    waiting = link.send(b"c", 1, 1.0)
    assert wire.writes == [b"abc"], "in the order of the calls, at once"
    link.data_received(b":1\r\n:2\r\n:3\r\n:4\r\n")
    assert await waiting == [4], "unneeded replies are counted"


async def test_a_command_posted_alone_leaves_too(link: Link, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    link.post(b"a", 1, 60.0)
    link.post(b"b", 1, 60.0)
    await wait_until(lambda: wire.writes == [b"ab"], "they leave, together")
    link.post(b"c", 1, 60.0)
    await wait_until(lambda: wire.writes == [b"ab", b"c"], "so does what is posted later")
    monkeypatch.setattr("penstock.transports.redis.driver.link.POST_WITHIN_S", 3600.0)
    for _ in range(MAX_JOINED):
        link.post(b"x", 1, 60.0)
    assert wire.writes[2:] == [b"x" * MAX_JOINED], "many do not wait"


async def test_a_posted_command_leaves_before_the_link_is_closed(link: Link, wire: Wire) -> None:
    link.post(b"a", 1, 1.0)
    link.close()
    assert wire.writes == [b"a"]
    link.post(b"b", 1, 1.0)
    link.close()
    assert wire.writes == [b"a"]


async def test_nothing_is_posted_where_a_command_would_be_refused(
    link: Link, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.transports.redis.driver.link.MAX_PENDING", 2)
    link.post(b"a", 2, 60.0)
    link.post(b"b", 1, 60.0)
    with pytest.raises(StoreUnavailable, match="Too many"):
        await link.send(b"c", 1, 60.0)
    link.data_received(b":1\r\n:2\r\n")
    waiting = link.send(b"d", 1, 60.0)
    link.data_received(b":3\r\n")
    assert await waiting == [3]
    assert b"".join(wire.writes) == b"ad"
