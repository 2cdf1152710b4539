"""The storage quota of one caller, and how it is counted. Pure, time is an argument.

A request is booked when it is submitted: its own bytes, and what its answer is expected to take, which is all that it
may take for answers of up to `AHEAD_TOKENS`. A longer answer is booked anew as it grows, always ahead of its tokens.
Once the request has ended its answer counts at its size, until the request expires. `lua/book.lua` and `lua/weigh.lua`
are the same in Lua.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct

from penstock.errors import QueueFull, StorageQuota
from penstock.job import Job
from penstock.rich_token import RichToken, Token, encoded_length, text_of
from penstock.tasks import DETOKENIZE, TOKENIZE, TOKENIZER_INFO

REQUEST_BYTES = 1024  # what a store needs for any request: its fields, its names, its places in lists
TOKEN_BYTES = 128  # a token in a log, with the frame around it
LOGPROB_BYTES = 32  # more, for the token itself and each likely one, where log probabilities are asked for
AHEAD_TOKENS = 4096  # of an answer that are booked before there are any
VECTOR_BYTES = 8192  # an embedding of 1,536 dimensions, as it is stored
ID_BYTES = 32  # a token of the vocabulary: its id and its text
INFO_BYTES = 256 * 1024  # the configuration of a tokenizer, with its chat template
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0
_MAX_REMEMBERED = 10_000


class Share(Struct, frozen=True, kw_only=True):
    """The most that one caller may have: waiting in the queue, stored, and stored in bytes. 0: no limit.

    Callers without a key are one caller. Its share of the queue is not limited: it could be the whole queue.
    """

    max_queued: int = 0
    max_stored: int = 0
    max_stored_bytes: int = 0

    def queue_full(self) -> QueueFull:
        return QueueFull(
            f"{self.max_queued} requests of this caller are waiting, the most that one caller may have in the queue "
            "(PENSTOCK_MAX_QUEUED_PER_CALLER)."
        )

    def has_room(self, num: int, num_bytes: int, wanted: int) -> bool:
        """Whether one more request of `wanted` bytes fits, where `num` of `num_bytes` in all are stored."""
        is_full = num >= self.max_stored > 0 or num_bytes + wanted > self.max_stored_bytes > 0
        return not is_full

    def refusal(self, num: int, num_bytes: int, wanted: int, frees_in_s: float) -> StorageQuota:
        """The error for one that has no room. `frees_in_s`: until the first of the others expires."""
        if self.max_stored and num >= self.max_stored:
            what = f"{num} requests of this caller are stored; at most {self.max_stored} may be"
            setting = "PENSTOCK_MAX_STORED_PER_CALLER"
        else:
            what = f"{num_bytes} bytes of this caller's requests are stored and this one may need {wanted}"
            what, setting = f"{what}; at most {self.max_stored_bytes} may be", "PENSTOCK_MAX_STORED_BYTES_PER_CALLER"
        return StorageQuota(
            f"{what} ({setting}). Room is made as requests end and expire, the next in {frees_in_s:.0f} s; cancelling "
            "one that is in the background makes room sooner.",
            retry_after_s=min(max(frees_in_s, _MIN_RETRY_S), _MAX_RETRY_S),
        )

    def is_near(self, num: int, num_bytes: int) -> bool:
        """Most of it is used: the next request is better judged before it is stored."""
        return 10 * num >= 9 * self.max_stored > 0 or 10 * num_bytes >= 9 * self.max_stored_bytes > 0


def queue_full(max_depth: int) -> QueueFull:
    """The error for a request beyond the depth of the queue."""
    return QueueFull(f"The queue is full: {max_depth} requests are waiting (PENSTOCK_MAX_QUEUE_DEPTH).")


def booked_tokens(job: Job, num_tokens: int = 0) -> int:
    """For how many tokens the answer is booked once it has `num_tokens`: for more, unless it can have no more."""
    most = AHEAD_TOKENS
    while most < 2 * num_tokens:
        most *= 2
    return max(min(most, job.sampling.max_tokens), num_tokens)


def booked_answer_bytes(job: Job, num_tokens: int = 0) -> int:
    """The bytes that are booked for the answer once it has `num_tokens`."""
    if job.generates:
        return _token_bytes(job) * booked_tokens(job, num_tokens)
    if job.task:
        return _most_result_bytes(job)
    numbers = encoded_length(job.sampling.dimensions or 0)
    return max(VECTOR_BYTES, TOKEN_BYTES + numbers) * len(job.inputs)


def answer_bytes(job: Job, tokens: Sequence[Token]) -> int:
    """The bytes that an answer of these tokens takes."""
    if job.generates:
        return _token_bytes(job) * len(tokens)
    if job.task:
        return sum([TOKEN_BYTES + len(text_of(token)) for token in tokens])
    return sum(TOKEN_BYTES + len(token.embedding or "") for token in tokens if isinstance(token, RichToken))


def _most_result_bytes(job: Job) -> int:
    """Of a task: a token for each input, and what is in it beyond a number."""
    num = (TOKEN_BYTES + ID_BYTES) * max(1, len(job.inputs))
    if job.task == TOKENIZE:  # a token has a character at least
        return num + ID_BYTES * len(job.text)
    if job.task == DETOKENIZE:
        return num + ID_BYTES * sum(map(len, job.inputs))
    return num + INFO_BYTES if job.task == TOKENIZER_INFO else num


def _token_bytes(job: Job) -> int:
    likely = job.sampling.logprobs
    return TOKEN_BYTES if likely is None else TOKEN_BYTES + LOGPROB_BYTES * (1 + likely)


class Books:
    """The stored requests of each caller in one process."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, tuple[int, int]]] = {}
        self._bytes: dict[str, int] = {}
        self.total = 0

    def num(self, caller: str) -> int:
        return len(self._of.get(caller, ()))

    def bytes_of(self, caller: str) -> int:
        return self._bytes.get(caller, 0)

    def book(self, job: Job, request: int, answer: int) -> None:
        """Count a request, or count it anew."""
        mine = self._of.setdefault(job.caller, {})
        more = request + answer - sum(mine.get(job.id, ()))
        mine[job.id] = (request, answer)
        self._add(job.caller, more)

    def grow(self, job: Job, answer: int) -> None:
        """Its answer counts with so many bytes, if that is more. Nothing for a request that is not counted."""
        booked = self._of.get(job.caller, {}).get(job.id)
        if booked is not None and answer > booked[1]:
            self.book(job, booked[0], answer)

    def weigh(self, job: Job, request: int | None, answer: int) -> None:
        """They have so many bytes, if that is less than was booked; None: as it was booked.

        Nothing for a request that is not counted.
        """
        booked = self._of.get(job.caller, {}).get(job.id)
        if booked is not None:
            self.book(job, booked[0] if request is None else min(booked[0], request), min(booked[1], answer))

    def unbook(self, job: Job) -> None:
        mine = self._of.get(job.caller, {})
        booked = mine.pop(job.id, None)
        if booked is not None:
            self._add(job.caller, -sum(booked))
            if not mine:
                del self._of[job.caller], self._bytes[job.caller]

    def _add(self, caller: str, num_bytes: int) -> None:
        self._bytes[caller] = self._bytes.get(caller, 0) + num_bytes
        self.total += num_bytes


class Recently:
    """Callers of whom something was true a moment ago. Bounded."""

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self._until: OrderedDict[str, float] = OrderedDict()

    def note(self, caller: str, now: float) -> None:
        self._until.pop(caller, None)
        self._until[caller] = now + self._for_s
        if len(self._until) > _MAX_REMEMBERED:
            self._until.popitem(last=False)

    def has(self, caller: str, now: float) -> bool:
        return bool(self._until) and self._until.get(caller, 0.0) > now
