"""The stand-in of a gateway whose processes keep dying: one answer to every client, without a wait."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from penstock.processes.stand_in import MAX_LINGERING, Refuser

REQUEST = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def refuser(listener: socket.socket) -> Iterator[Refuser]:
    refuser = Refuser(listener)
    assert refuser.fileno() == listener.fileno()
    yield refuser
    for connection in refuser._answered:
        connection.close()


def connect(listener: socket.socket) -> socket.socket:
    client = socket.create_connection(listener.getsockname(), timeout=10.0)
    client.sendall(REQUEST)
    return client


def whole(client: socket.socket) -> bytes:
    """All that comes until the other side has ended it. Not reset: a slow client would lose it all."""
    said = b""
    while data := client.recv(65536):
        said += data
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return said


def test_a_client_gets_503_with_retry_after(listener: socket.socket, refuser: Refuser) -> None:
    with connect(listener) as client:
        refuser.answer()
        head, _, body = whole(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 5" in head.lower().split(b"\r\n")
    assert json.loads(body)["error"]["code"] == "unavailable"


def test_without_a_waiting_client_it_continues(listener: socket.socket, refuser: Refuser) -> None:
    """Another process that shares the listener may have taken the connection."""
    refuser.answer()
    with connect(listener) as client:
        refuser.answer()
        assert whole(client).startswith(b"HTTP/1.1 503 ")


def test_a_client_that_sends_nothing_is_answered_and_delays_no_other_client(
    listener: socket.socket, refuser: Refuser
) -> None:
    with socket.create_connection(listener.getsockname(), timeout=10.0) as client:
        refuser.answer()
        assert whole(client).startswith(b"HTTP/1.1 503 ")


def test_a_client_that_still_sends_is_not_cut_off(listener: socket.socket, refuser: Refuser) -> None:
    with connect(listener) as client:
        refuser.answer()
        client.sendall(REQUEST)
        assert whole(client).endswith(b"}")


def test_a_flood_holds_few_descriptors_and_cuts_no_client_off(listener: socket.socket, refuser: Refuser) -> None:
    clients = [connect(listener) for _ in range(3 * MAX_LINGERING)]
    for _ in clients:
        refuser.answer()
    assert len(refuser._answered) == MAX_LINGERING
    for client in clients:
        with client:
            assert whole(client).endswith(b"}")
