"""The results of the client. Times are as the server sends them: durations in milliseconds, instants in seconds."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from penstock.event import Usage
from penstock.rich_token import Logprob, ToolCall


class Timings(Struct, frozen=True):
    """Milliseconds since the submission; None for what did not happen."""

    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer. `finish_reason`: `length`, `stop`, `tool_calls` or `content_filter`.

    `reasoning`, `tool_calls` and `logprobs` are empty where the model gave none. `arguments` of a call is the text of a
    JSON object, as the model wrote it.
    """

    request_id: str
    model: str
    text: str
    finish_reason: str
    usage: Usage = Usage()
    timings: Timings = Timings()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] = ()


class Status(Struct, frozen=True, kw_only=True):
    """The state of a request at a gateway. `state`: `queued`, `running`, `completed`, `failed` or `cancelled`.

    `position` (1 is next) and `estimated_wait_s` are there while it waits, `text` (and what an `Answer` has next to it)
    when it has completed, `error` (the `error` object of every error) when it has failed.
    """

    request_id: str
    model: str
    state: str
    created_at: float
    deadline_at: float
    attempts: int = 0
    position: int | None = None
    estimated_wait_s: float | None = None
    timings: Timings = Timings()
    usage: Usage | None = None
    finish_reason: str | None = None
    text: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    error: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    user: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state not in ("queued", "running")


class ModelInfo(Struct, frozen=True, kw_only=True):
    id: str
    created: int = 0
    owned_by: str = ""
