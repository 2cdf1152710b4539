"""`Event`s travel up from a worker to a gateway. One event is one frame of the log and of the channel.

`seq` is the index of the event's first token, counted over all attempts; `attempt` is the fencing number of the
claim that wrote it. Every reader folds `tokens = tokens[:seq] + event.tokens`. Exactly one `Done` or `Failed` ends a
job, and no event follows it. Knows nothing of how events travel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from penstock.errors import PenstockError, from_code
from penstock.rich_token import Token, join_text

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "cancelled"]

MAX_ATTEMPT = 2**53  # a time in ms; scripts and entry ids cannot count beyond it


class Usage(Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class _Event(Struct, frozen=True, gc=False, tag_field="kind"):
    job_id: str = field(name="id")
    attempt: Annotated[int, Meta(lt=MAX_ATTEMPT)]
    seq: Annotated[int, Meta(ge=0)]

    @property
    def end(self) -> int:
        """Number of tokens after this event."""
        return self.seq


class Started(_Event, frozen=True, gc=False, tag="started"):
    """A worker has claimed the job and continues after `seq` tokens."""


class _Carrier(_Event, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    tokens: tuple[Token, ...] = ()

    @property
    def end(self) -> int:
        return self.seq + len(self.tokens)


class Tokens(_Carrier, frozen=True, gc=False, kw_only=True, tag="tokens"):
    """One or more tokens, in order."""


class Done(_Carrier, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="done"):
    """The last tokens, if any are left, and the end."""

    finish_reason: FinishReason
    usage: Usage = Usage()


class Failed(_Carrier, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="failed"):
    """The end, with the code of an error in `errors`."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, job_id: str, attempt: int, seq: int, error: PenstockError, tokens: tuple[Token, ...] = ()) -> Failed:
        return cls(
            job_id,
            attempt,
            seq,
            tokens=tokens,
            code=error.code,
            message=error.message,
            param=error.param,
            retry_after_s=error.retry_after_s,
        )

    def error(self) -> PenstockError:
        return from_code(self.code, self.message, param=self.param, retry_after_s=self.retry_after_s)


Event = Started | Tokens | Done | Failed
Terminal = Done | Failed


class Completion(Struct, frozen=True):
    """A whole answer: a folded stream. `end` is None while the stream has not ended."""

    tokens: tuple[Token, ...] = ()
    attempt: int = 0
    end: Terminal | None = None

    @property
    def text(self) -> str:
        return join_text(self.tokens)


def fold(events: Iterable[Event], so_far: Completion = Completion()) -> Completion:
    """Fold events of one job, in log order, into one `Completion`.

    Ignored are: events of an older attempt than one already seen, events after the end, and events that leave a gap
    (`seq` beyond the known tokens), because their tokens have no position yet.
    """
    tokens, attempt, end = list(so_far.tokens), so_far.attempt, so_far.end
    for event in events:
        if end is not None:
            break
        if event.attempt < attempt or event.seq > len(tokens):
            continue
        attempt = event.attempt
        if isinstance(event, Started):
            del tokens[event.seq :]
            continue
        tokens[event.seq :] = event.tokens
        if isinstance(event, Done | Failed):
            end = event
    return Completion(tuple(tokens), attempt, end)
