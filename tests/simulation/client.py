"""A client of a simulated run, who checks every token as it comes and knows which ends are allowed.

`serve` and `serve_again` are what a gateway's routes do around the real relay, without HTTP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Protocol

from penstock.api.idempotency import submit_once
from penstock.errors import InvalidRequest, PenstockError, QueueFull, StoreUnavailable
from penstock.event import Done, Failed, Terminal, fold
from penstock.gateway.relay import Reader, wait_changed
from penstock.http.edge import Call
from penstock.rich_token import Token
from tests.simulation.plan import Ask
from tests.simulation.tokens import fault_of

if TYPE_CHECKING:
    from tests.simulation.people import Gateway

RESUME_EVERY_S = 0.5
POLL_EVERY_S = 0.3
MAX_RESUMES = 40

State = Literal["idle", "asking", "reading", "ended", "left", "refused", "unknown", "lost"]


class World(Protocol):
    """What a client needs of its run."""

    @property
    def has_lost_data(self) -> bool: ...

    @property
    def is_calm(self) -> bool: ...

    @property
    def may_be_late(self) -> bool: ...

    def now(self) -> float: ...

    def note(self, who: str, what: str, *details: object) -> None: ...

    def violate(self, text: str) -> None: ...

    def later(self, after_s: float, client: Client) -> None: ...

    def is_allowed(self, client: Client, error: Failed) -> bool: ...

    def pick_gateway(self, which: int) -> Gateway | None: ...


class Client:
    """Asks once, reads, and comes back elsewhere when its gateway dies."""

    def __init__(self, world: World, ask: Ask) -> None:
        self.world = world
        self.ask = ask
        self.name = f"client {ask.number}"
        self.state: State = "idle"
        self.job_id = ""
        self.tokens: list[Token] = []
        self.asked_at = self.ended_at = 0.0
        self.num_resumes = 0
        self.error = ""
        self.gateway: Gateway | None = None
        self.owner: Gateway | None = None
        self.tellers: set[Gateway] = set()
        self.is_shared = self.is_read = self.has_lost_gateway = False
        self.handler: asyncio.Task[None] | None = None
        self.other: tuple[Gateway, asyncio.Task[None]] | None = None  # another client that reads the same

    @property
    def is_read_on(self) -> bool:
        """Another client still reads its request."""
        return self.other is not None and self.other[0].process.is_alive and not self.other[1].done()

    @property
    def is_waiting(self) -> bool:
        return self.state in ("idle", "asking", "reading")

    def act(self) -> None:
        """Ask, or come back, or poll."""
        gateway = self.world.pick_gateway(self.ask.which + self.num_resumes)
        if gateway is None:
            self.world.later(RESUME_EVERY_S, self)
        elif self.ask.is_background and self.state in ("reading", "ended"):
            self.num_resumes += 1
            self.world.later(POLL_EVERY_S, self)
            gateway.process.spawn(poll(self, gateway))
        elif self.state == "idle":
            self.asked_at = self.world.now()
            self.state = "asking"
            self.gateway = self.owner = gateway
            self.job_id = self.ask.job(gateway.id).id
            self.handler = gateway.process.spawn(serve(self, gateway))
        elif self.state == "reading":
            self.num_resumes += 1
            self.gateway = gateway
            self.is_read = True
            self.handler = gateway.process.spawn(serve_again(self, gateway))

    # ── what its connection brings ───────────────────────────────────────────────────────────────────────────────

    def admitted(self) -> None:
        if self.state == "asking":
            self.state = "reading"

    def refused(self, error: PenstockError) -> None:
        if self.state == "asking":
            self.world.note(self.name, "refused", error.code)
            self.state = "refused"

    def cut(self) -> None:
        """The gateway is gone."""
        self.gateway = self.handler = None
        self.has_lost_gateway = True
        if self.state == "asking":
            self.state = "unknown"
        elif self.ask.is_background:
            return
        elif self.state == "reading" and self.ask.on_disconnect == "cancel":
            self.state = "lost"
        elif self.state == "reading":
            self.world.later(RESUME_EVERY_S, self)

    def not_found(self) -> None:
        if self.state != "reading":
            return
        self.gateway = self.handler = None
        if self.num_resumes < MAX_RESUMES:
            self.world.later(RESUME_EVERY_S, self)
        else:
            self.end(Failed(self.job_id, 0, len(self.tokens), code="request_not_found", message=""))

    def receive(self, first: int, tokens: list[Token]) -> None:
        if self.state != "reading":
            return
        self.check(self.tokens, first, tokens)
        self.tokens += tokens

    def check(self, so_far: list[Token], first: int, tokens: list[Token]) -> None:
        """`tokens`, the first of which is said to have the number `first`, must follow `so_far`."""
        if first != len(so_far):
            self.world.violate(f"{self.name} has {len(so_far)} tokens and is sent number {first}")
        # docs/reliability.md, what is not promised: data lost while no gateway held what this client has had.
        if self.world.has_lost_data and (self.is_shared or self.has_lost_gateway):
            return
        so_far = so_far[-1:]
        for number, token in enumerate(tokens, first):
            fault = fault_of(self.job_id, number, so_far[-1] if so_far else None, token)
            if fault is not None:
                self.world.violate(f"{self.name} reads: {fault}")
            so_far = [token]

    def end(self, end: Terminal) -> None:
        if self.state != "reading":
            return
        self.world.note(self.name, "ends", end)
        self.state, self.ended_at = "ended", self.world.now()
        if isinstance(end, Done):
            if end.finish_reason != "length" or len(self.tokens) != self.ask.sampling.max_tokens:
                self.world.violate(f"{self.name} is done ({end.finish_reason}) with {len(self.tokens)} tokens")
            return
        self.error = end.code
        if not self.world.is_allowed(self, end):
            self.world.violate(f"{self.name} ended in {end.code}: {end.message}")

    @property
    def is_kept(self) -> bool:
        """Its gateway has lived without a pause, or the store has lost nothing: what it was told must hold."""
        return self.owner is not None and (self.owner.process.is_unharmed or not self.world.has_lost_data)

    def sees(self, gateway: Gateway, state: str, failed: Failed | None = None) -> None:
        """What a poll of its background request has shown, at whichever gateway."""
        if self.state == "ended" and not self.error and self.is_kept:
            has_told = gateway in self.tellers and gateway.process.is_unharmed
            if state in ("failed", "cancelled") or (has_told and state != "completed"):
                self.world.violate(f"{self.name} was completed, and {gateway.id} says that it is {state or 'unknown'}")
        elif self.state == "reading" and state in ("completed", "failed", "cancelled"):
            self.world.note(self.name, "sees the end", state, gateway.id)
            self.state, self.ended_at, self.error = "ended", self.world.now(), "" if state == "completed" else state
            poisoned = Failed(self.job_id, 0, 0, code="request_poisoned", message="")
            if self.error and self.is_kept and not self.world.is_allowed(self, failed or poisoned):
                self.world.violate(f"{self.name} has not been cancelled, and is {state}")
        elif self.state == "reading" and not state:
            if self.is_kept:
                self.world.violate(f"{self.name} was admitted, and {gateway.id} does not know it")
            elif self.world.is_calm:
                self.end(Failed(self.job_id, 0, len(self.tokens), code="request_not_found", message=""))
        if state == "completed":
            self.tellers.add(gateway)

    def once_more(self) -> None:
        """The same POST with the same key, at another gateway."""
        gateway = self.world.pick_gateway(self.ask.which + 1)
        if gateway is not None and self.state in ("reading", "ended"):
            gateway.process.spawn(serve_once_more(self, gateway))

    def read_too(self) -> None:
        """Another client reads the events of its request, at another gateway."""
        gateway = self.world.pick_gateway(self.ask.which + 1)
        if gateway is not None and self.state == "reading":
            self.is_read = self.is_shared = True
            self.other = gateway, gateway.process.spawn(serve_too(self, gateway))

    def named(self, gateway: Gateway, job_id: str) -> None:
        """The request that its key names now."""
        is_over = self.state in ("left", "lost") or self.error
        if job_id != self.job_id and not is_over and self.is_kept and not self.world.may_be_late:
            self.world.violate(
                f"{self.name} asked {gateway.id} again under its key and got {job_id}, not {self.job_id}"
            )

    def may_leave(self, num_tokens: int) -> None:
        """Its answer has so many tokens by now."""
        if self.ask.leaves_after is not None and 0 <= self.ask.leaves_after <= num_tokens:
            self.leave()

    def leave(self) -> None:
        if self.is_waiting and self.state != "idle":
            self.world.note(self.name, "leaves", len(self.tokens))
            self.state = "left"
            if self.gateway is not None and self.handler is not None:
                self.gateway.process.at(self.world.now(), self.handler.cancel)


async def serve(client: Client, gateway: Gateway) -> None:
    """`POST /v1/generate`."""
    try:
        reader = await _post(client, gateway)
    except (QueueFull, StoreUnavailable) as error:
        client.refused(error)
        return
    client.admitted()
    if client.ask.is_background:
        gateway.relay.leave(reader, is_delivered=False)
        client.world.later(POLL_EVERY_S, client)
    else:
        await _read(client, gateway, reader, is_whole=not client.ask.stream)


async def serve_once_more(client: Client, gateway: Gateway) -> None:
    """The same POST again. What it begins anew is not wanted."""
    try:
        reader = await _post(client, gateway, is_again=True)
    except (QueueFull, StoreUnavailable):
        return
    job_id = reader.stream.job.id
    client.is_shared = True
    client.named(gateway, job_id)
    gateway.relay.leave(reader, is_delivered=False)
    if job_id != client.job_id:
        gateway.relay.abandon(reader.stream)


async def _post(client: Client, gateway: Gateway, *, is_again: bool = False) -> Reader:
    job = client.ask.job(gateway.id, is_again=is_again)
    if not client.ask.again_at:
        return await gateway.submit(job, "")
    real: Any = gateway  # as much of one as is needed
    return await submit_once(real, Call(job.id), job, "", f"key {client.ask.number}", "hash", "")


async def poll(client: Client, gateway: Gateway) -> None:
    """`GET /v1/requests/{id}`."""
    try:
        record = await gateway.relay.look_up(client.job_id)
    except StoreUnavailable:
        return
    end = None if record is None else fold(record.events).end
    if isinstance(end, Done):
        client.sees(gateway, "cancelled" if end.finish_reason == "cancelled" else "completed")
    elif end is not None:
        client.sees(gateway, "failed", end)
    else:
        client.sees(gateway, "" if record is None else record.state)


async def serve_again(client: Client, gateway: Gateway) -> None:
    """`GET /v1/requests/{id}/events` with `Last-Event-ID`."""
    try:
        record = await gateway.relay.look_up(client.job_id)
        if record is None:
            client.not_found()
            return
        stream = await gateway.relay.attach(client.job_id, record, len(client.tokens))
    except (StoreUnavailable, InvalidRequest):
        client.not_found()
        return
    await _read(client, gateway, gateway.relay.read(stream, len(client.tokens)))


async def serve_too(client: Client, gateway: Gateway) -> None:
    """`GET /v1/requests/{id}/events` from its start, next to its own client."""
    try:
        record = await gateway.relay.look_up(client.job_id)
        if record is None:
            return
        stream = await gateway.relay.attach(client.job_id, record)
    except StoreUnavailable:
        return
    reader, so_far = gateway.relay.read(stream), list[Token]()
    try:
        while True:
            while not reader.has_news:
                await wait_changed([reader])
            first, tokens = reader.fresh()
            client.check(so_far, first, tokens)
            so_far += tokens
            if stream.end is not None and reader.num_sent >= len(stream.tokens):
                return
    finally:
        gateway.relay.leave(reader, is_delivered=stream.end is not None)


async def _read(client: Client, gateway: Gateway, reader: Reader, *, is_whole: bool = False) -> None:
    is_delivered = False
    try:
        while True:
            while not reader.has_news or (is_whole and reader.stream.end is None):
                await wait_changed([reader])
                client.may_leave(len(reader.stream.tokens))
            first, tokens = reader.fresh()
            if tokens:
                client.receive(first, tokens)
            client.may_leave(len(client.tokens))
            if reader.stream.end is not None:
                client.end(reader.stream.end)
                is_delivered = True
                return
    finally:
        gateway.relay.leave(reader, is_delivered=is_delivered)
