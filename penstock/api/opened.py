"""What every API gets of a request that was submitted or attached to, and what its answer is made of."""

from __future__ import annotations

from msgspec import Struct

from penstock.gateway.admission import Permit
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.edge import Call


class Opened(Struct, frozen=True):
    """What an answer is made of: readers of the requests that are open at this gateway, and the one permit for all."""

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
