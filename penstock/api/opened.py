"""`Opened`: the requests that were submitted or attached to for one call. Every API makes its answer of it."""

from __future__ import annotations

from msgspec import Struct

from penstock.gateway.admission import Permit
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.edge import Call


class Opened(Struct, frozen=True):
    """The parts of an answer: a reader for each of its requests at this gateway, and one permit for all of them."""

    gateway: Gateway
    call: Call
    readers: list[Reader]
    permit: Permit

    @property
    def reader(self) -> Reader:
        """The first one; of most answers the only one."""
        return self.readers[0]

    def leave_running(self) -> None:
        """Let go of requests that run in the background: another request asks for their answers."""
        self.permit.release()
        for reader in self.readers:
            self.gateway.relay.leave(reader, is_delivered=False)
