"""A `Job` travels down from a gateway to a worker, which holds it as a `Claim`; several claims are a `Batch`.

A `Job` exists only if it is valid: `api/` parses it, and nothing downstream checks it again.
Knows nothing of HTTP, Redis or engines.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from penstock.rich_token import Token, ToolCall

OnDisconnect = Literal["cancel", "resume", "continue"]
CancelReason = Literal["client", "deadline", "operator"]
TokenIds = tuple[int, ...]  # of the model's vocabulary


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation. Roles and fields are those of OpenAI's chat messages.

    `parts` replaces `content` if the content has more than text (images): content parts as the client gave them.
    `tool_calls`: the assistant's calls; `tool_call_id`: the call that a `tool` message answers. `reasoning`: of an
    assistant's answer, given back; only a backend whose engine asks for it shows it to the model.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    parts: tuple[dict[str, Any], ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""

    @property
    def fetches(self) -> bool:
        """Whether it refers to content that an engine would have to fetch, such as an image's URL."""
        return any(part.get("type") != "text" and not _is_inline(part.get("image_url")) for part in self.parts)


def _is_inline(image: object) -> bool:
    url = image.get("url") if isinstance(image, dict) else None
    return isinstance(url, str) and url[:5].lower() == "data:"


class Sampling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to draw tokens, and in which form. None means "the backend's default", never "ignored".

    The names are OpenAI's, and for `top_k`, `min_p` and `repetition_penalty` those of the engines that have them.
    `logprobs`: number of alternatives at each token; 0 for the token's own log probability alone. `dimensions`: of an
    embedding. `add_special_tokens`, `return_token_strs`: of the task `tokenize`. `tools`, `tool_choice` and
    `response_format` are the client's JSON, unchanged: a backend that accepts them must know their form.
    `max_tokens_given`: False where the client named no `max_tokens`; it is then a bound, and an engine that knows a
    limit of its own uses that.

    `extras`: more fields by name, as the client gave them (`penstock/extras.py`), such as `ignore_eos`. Each name is
    accepted or refused like a field of its own.
    """

    max_tokens: int = 256
    max_tokens_given: bool = True
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    extras: dict[str, Any] = {}

    def named(self) -> list[str]:
        """The optional fields that the client set, extras too; not `max_tokens`, which every backend honours."""
        values = _optional_values(self)
        if values == _NOTHING_NAMED:
            return list(self.extras)
        named = [name for name, value in zip(OPTIONAL_FIELDS, values, strict=True) if value not in (None, ())]
        return [*named, *self.extras]


_NOT_OPTIONAL = ("max_tokens", "max_tokens_given", "extras")
OPTIONAL_FIELDS = tuple(name for name in Sampling.__struct_fields__ if name not in _NOT_OPTIONAL)
_optional_values = attrgetter(*OPTIONAL_FIELDS)
_NOTHING_NAMED = _optional_values(Sampling())


class Job(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One durable request. The store sets its deadline at creation, by its own clock: `timeout_s` from then.

    A job has exactly one of `prompt`, `messages` and `inputs`, which are texts to embed, a token each; or it has a
    `task` (the table in `penstock/tasks.py` has what each reads). Token ids in place of a text are for a backend that
    accepts `token_ids`.

    * `task`: "" to generate, or, with `inputs`, to embed.
    * `queries`: to score the `inputs` by, one for all of them or one for each.
    * `caller`: the verified key's id, or "" without keys; never a secret.
    * `retention_s`: how long it is kept after its end; None for the transport's default.
    * `stream`: whether a client may read it token by token. False lets a worker group tokens into fewer, larger frames,
      and begin again what it cannot continue.
    * `metadata`, `user`: the client's own notes. Penstock returns them and does not read them; an upstream gets `user`.
    * `notes`: data of the API that made the job and must return with it.
    * `once`: its idempotency key as `<hash of the key> <hash of the body>`, so that a gateway that gives the request
      back to a store gives its key back too.
    * `repeated`: first and last (exclusive) index of messages that an earlier request of the caller has too; the store
      need not keep them with this one after its end.
    """

    id: str
    model: str
    prompt: str | TokenIds | None = None
    messages: tuple[Message, ...] | None = None
    inputs: tuple[str | TokenIds, ...] = ()
    sampling: Sampling = Sampling()
    caller: str = ""
    priority: int = 0
    timeout_s: float = 600.0
    on_disconnect: OnDisconnect = "cancel"
    retention_s: float | None = None
    stream: bool = True
    trace: str = ""
    metadata: dict[str, str] = {}
    user: str = ""
    notes: dict[str, Any] = {}
    repeated: tuple[int, int] = (0, 0)
    once: str = ""
    task: str = ""
    queries: tuple[str, ...] = ()

    @property
    def generates(self) -> bool:
        """Whether its tokens are those of an answer, which its `max_tokens` limits and its usage counts."""
        return not self.task and not self.inputs

    @property
    def has_token_ids(self) -> bool:
        """Whether it has token ids in place of a text."""
        return not self.task and any(isinstance(text, tuple) for text in (self.prompt, *self.inputs))

    def kept(self) -> Job:
        """The job as stored after its end: without the messages that an earlier request has."""
        first, last = self.repeated
        if first == last:
            return self
        messages = self.messages or ()
        return replace(self, messages=messages[:first] + messages[last:], repeated=(0, 0))

    @property
    def text(self) -> str:
        """The prompt as one string; messages as `role: content` lines. For backends without a chat template.

        Token ids are numbers with blanks between them.
        """
        if self.prompt is not None:
            return _text_of(self.prompt)
        if self.inputs:
            return "\n".join([_text_of(text) for text in self.inputs])
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages or ())

    @property
    def batch_key(self) -> tuple[str, int]:
        return (self.model, self.sampling.max_tokens)


def _text_of(text: str | TokenIds) -> str:
    return text if isinstance(text, str) else " ".join(map(str, text))


@dataclass(slots=True, eq=False)
class Claim:
    """A job under a worker's lease, with the tokens that an earlier attempt already delivered.

    `attempt` is the fencing number. `deadline_at` is on this process' monotonic clock. `queued_s` is the time from
    creation to this claim, on the store's clock. `num_deaths` in a row make a job a suspect.
    Only `cancelled` changes, and only once.
    """

    job: Job
    attempt: int
    deadline_at: float
    tokens: tuple[Token, ...] = ()
    queued_s: float = 0.0
    num_deaths: int = 0
    cancelled: CancelReason | None = None
    _watchers: list[Callable[[], None]] = field(default_factory=list)

    def cancel(self, reason: CancelReason) -> None:
        """Ask the worker that runs this to stop. Safe to repeat; the first reason stays."""
        if self.cancelled is None:
            self.cancelled = reason
            for watcher in self._watchers:
                watcher()

    def on_cancel(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` once when the job is cancelled, at once if it already is."""
        if self.cancelled is not None:
            watcher()
        else:
            self._watchers.append(watcher)

    def rerun(self, attempt: int) -> Claim:
        """The same job from its first token, under a higher attempt. Nothing watches it yet."""
        return dataclasses.replace(self, attempt=attempt, tokens=(), _watchers=[])

    def unwatch(self) -> None:
        """Drop all callbacks: the job has left this worker."""
        self._watchers.clear()  # see "No cycles": claim → watcher → lane → claim


@dataclass(slots=True, frozen=True, eq=False)
class Batch:
    """Claims of one model and one `max_tokens`, run side by side by one backend."""

    claims: tuple[Claim, ...]

    @property
    def model(self) -> str:
        return self.claims[0].job.model

    def __len__(self) -> int:
        return len(self.claims)


# A request's id: its gateway's id, a dot, and a unique part, from any producer; ours are the gateway's id and a ULID.
# These characters have no special meaning in keys, patterns, frames, paths and log lines.
JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9._-]{1,128}")

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_OF_BYTE = "".join(_CROCKFORD[byte & 31] for byte in range(256)).encode()  # any five bits of a byte as a letter


def new_ulid() -> str:
    """26 characters, sortable by time (https://github.com/ulid/spec): 48 bits of milliseconds, 80 random ones."""
    return _stamp(time.time_ns() // 1_000_000) + os.urandom(16).translate(_OF_BYTE).decode()


@lru_cache(maxsize=1)
def _stamp(milliseconds: int) -> str:
    return "".join(_CROCKFORD[milliseconds >> shift & 31] for shift in range(45, -1, -5))


def created_at_of(job_id: str) -> int:
    """When a request's id was made: whole seconds since 1970 on its gateway's clock; 0 where the id lacks it."""
    ulid = job_id.rpartition(".")[2]
    if len(ulid) != 26 or not set(ulid) <= set(_CROCKFORD):
        return 0
    milliseconds = 0
    for letter in ulid[:10]:
        milliseconds = milliseconds << 5 | _CROCKFORD.index(letter)
    return milliseconds // 1000


def new_process_id(kind: str) -> str:
    """An id for a gateway (`g`) or worker (`w`) that is never used again: letters and digits only."""
    return kind + "".join(secrets.choice("abcdefghjkmnpqrstvwxyz0123456789") for _ in range(11))
