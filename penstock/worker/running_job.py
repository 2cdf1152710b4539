"""One claimed job on its way through a worker: from the claim to the written end. Knows no transport and no engine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from penstock.errors import BackendError, PenstockError
from penstock.event import Failed, Terminal, Tokens
from penstock.job import Batch, Claim
from penstock.rich_token import RichToken, Token
from penstock.wire import check_event, encode_event

UNWRITABLE = "The model's backend failed with an unreadable error message."


def is_writable(event: Terminal | Tokens) -> bool:
    """Whether a backend's event has the values that its types promise. Checked before it is written to the log."""
    try:
        check_event(encode_event(event))
    except (TypeError, ValueError):  # raised by the encoder, by Unicode, by the wire
        return False
    return True


@dataclass(slots=True, eq=False)
class RunningJob:
    """`num` tokens have come from the engine (`num_given` from an earlier attempt), `num_sent` have left the outbox.

    While `is_open` the engine may add tokens; then `end` waits to be written. `is_dropped`: the job is no longer this
    worker's, and nothing more of it is written.
    """

    claim: Claim
    id: str = field(init=False)
    attempt: int = field(init=False)
    is_stream: bool = field(init=False)
    num_given: int = field(init=False)
    claimed_at: float = field(default_factory=lambda: time.monotonic())
    started_at: float = 0.0
    num: int = 0
    num_sent: int = 0
    pending: list[Token] = field(default_factory=list)
    end: Terminal | None = None
    is_open: bool = True
    is_dropped: bool = False
    is_marked: bool = False
    timer: asyncio.TimerHandle | None = None
    run: Run | None = None

    def __post_init__(self) -> None:
        claim = self.claim
        self.id, self.attempt, self.is_stream = claim.job.id, claim.attempt, claim.job.stream
        self.num = self.num_sent = self.num_given = len(claim.tokens)

    def takes(self, event: Tokens) -> bool:
        """The usual case: if `event` is the next token, one of plain text, count it. Else return False, do nothing."""
        tokens = event.tokens
        if (
            event.seq == self.num
            and event.attempt == self.attempt
            and len(tokens) == 1
            and type(tokens[0]) is str
            and tokens[0].isascii()
        ):
            self.num += 1
            return True
        return False

    def fault_of(self, event: Tokens | Terminal) -> str | None:
        """The reason why `event`, new from the engine, must not enter the log; None if it may."""
        if event.attempt != self.attempt:
            return f"yielded attempt {event.attempt} instead of {self.attempt}"
        if event.seq != self.num:
            return f"yielded token {event.seq} instead of {self.num}"
        for token in event.tokens:
            if type(token) is not str:
                if not isinstance(token, RichToken):
                    return f"yielded a token that is {type(token).__name__}"
                if not is_writable(Tokens(self.id, event.attempt, event.seq, tokens=(token,))):
                    return "yielded a token that cannot be written"
            elif not token.isascii():
                try:
                    token.encode()
                except UnicodeEncodeError:
                    return "yielded a token that is not valid Unicode"
        if type(event) is not Tokens and not is_writable(event):
            return "yielded an end that cannot be written"
        return None

    def failed(self, error: PenstockError) -> Failed:
        """`error` as the end of this job."""
        end = Failed.of(self.id, self.claim.attempt, self.num, error)
        return end if is_writable(end) else Failed.of(self.id, self.claim.attempt, self.num, BackendError(UNWRITABLE))

    def shut(self) -> None:
        """The engine adds nothing more."""
        self.is_open = False
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.run is not None:
            self.run.jobs.pop(self.id, None)


@dataclass(slots=True, eq=False)
class Run:
    """One batch in its backend. `jobs` are those that have not ended.

    The lease's thread reads `num_events` and `is_in_engine`: an engine that waits is not one that hangs.
    """

    number: int
    batch: Batch
    jobs: dict[str, RunningJob]
    needs_batch_slot: bool
    has_own_timeouts: bool = False
    num_events: int = 0
    is_in_engine: bool = True
    task: asyncio.Task[None] | None = None
