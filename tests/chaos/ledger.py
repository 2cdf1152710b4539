"""The ledger: one entry for each request that the load clients sent, checked token by token as they arrive.

Times are `time.monotonic()`. Knows nothing of processes or faults.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from penstock.backends.mock.sentences import TokenOf
from penstock.backends.mock.text import token_source, verify_chain
from penstock.job import Job, Sampling

Outcome = Literal["open", "done", "failed", "refused", "left", "cut"]

# Codes of a request that was never admitted. `draining` and the like inside a stream are failures.
REFUSALS = frozenset(
    {"queue_full", "rate_limited", "store_unavailable", "draining", "overloaded", "deadline_unreachable"}
)


@dataclass(slots=True, eq=False)
class Entry:
    """One request. `longest_pause_s` is between two events of a stream after its first token; waiting before that is
    kept apart, in `first_token_s`."""

    prompt: str
    max_tokens: int
    is_stream: bool = True
    gateway: str = ""
    request_id: str = ""
    outcome: Outcome = "open"
    code: str = ""
    sent_at: float = field(default_factory=time.monotonic)
    first_at: float = 0.0
    last_at: float = 0.0
    ended_at: float = 0.0
    tokens: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    last_event_id: str = ""
    longest_pause_s: float = 0.0
    paused_until: float = 0.0
    num_resumed: int = 0
    num_lost: int = 0
    num_repeated: int = 0
    num_wrong: int = 0
    num_ends: int = 0
    faults: list[str] = field(default_factory=list)
    may_fail: bool = False
    is_second: bool = False
    _token_of: TokenOf | None = None

    @property
    def is_admitted(self) -> bool:
        """The gateway has taken it: it has told its id, or held it to an end."""
        return bool(self.request_id) and self.outcome != "refused"

    @property
    def first_token_s(self) -> float | None:
        return self.first_at - self.sent_at if self.first_at else None

    def token(self, index: int, text: str, event_id: str, now: float) -> None:
        """A token event, as it arrives."""
        if self.num_ends:
            self.faults.append(f"token {index} after the end")
        if index < len(self.tokens):
            self.num_repeated += 1
            return
        while len(self.tokens) < index:
            self.num_lost += 1
            self.tokens.append("")
        self.tokens.append(text)
        if self._token_of is None:
            sampling = Sampling(max_tokens=self.max_tokens)
            self._token_of = token_source(
                Job(id="any.1", model="mock", prompt=self.prompt, sampling=sampling), chain=True
            )
        if text != self._token_of(index):
            self.num_wrong += 1
        attempt = event_id.rpartition("/")[2].partition("-")[0]
        if not self.attempts or self.attempts[-1] != attempt:
            self.attempts.append(attempt)
        self.last_event_id = event_id
        self.first_at = self.first_at or now
        self.mark(now)

    def mark(self, now: float) -> None:
        """Something of the answer has arrived."""
        if self.last_at and now - self.last_at > self.longest_pause_s:
            self.longest_pause_s, self.paused_until = now - self.last_at, now
        self.last_at = now

    def end(self, outcome: Outcome, code: str, now: float) -> None:
        """Its one end."""
        self.num_ends += 1
        if self.num_ends > 1:
            self.faults.append(f"ended again: {outcome} {code}, after {self.outcome} {self.code}")
            return
        if self.tokens:
            self.mark(now)
        self.outcome, self.code, self.ended_at = outcome, code, now
        if outcome == "done" and code not in ("length", "stop"):
            self.faults.append(f"finished with {code!r}, without a request for it")
        if outcome == "done" and len(self.tokens) != self.max_tokens:
            self.faults.append(f"done with {len(self.tokens)} of {self.max_tokens} tokens")
        if self.is_stream and not self.num_lost and (broken := verify_chain(self.tokens)) is not None:
            self.faults.append(broken)

    def whole(self, text: str, now: float) -> None:
        """A whole answer: all of it at once."""
        sampling = Sampling(max_tokens=self.max_tokens)
        token_of = token_source(Job(id="any.1", model="mock", prompt=self.prompt, sampling=sampling), chain=True)
        self.tokens = [token_of(index) for index in range(self.max_tokens)]
        if text != "".join(self.tokens):
            self.num_wrong += 1
            self.faults.append("the whole answer is not what one generation says")
        self.end("done", "length", now)

    def problems(self) -> list[str]:
        """What is wrong with it, for the report; the entry must have ended."""
        found = list(self.faults)
        if self.num_lost or self.num_repeated or self.num_wrong:
            found.append(f"{self.num_lost} tokens lost, {self.num_repeated} repeated, {self.num_wrong} not its own")
        if self.outcome == "open":
            found.append(f"never ended, after {len(self.tokens)} of {self.max_tokens} tokens")
        if self.outcome == "cut":
            found.append(f"cut off without an end: {self.code}")
        if self.outcome == "failed" and not self.may_fail:
            found.append(f"failed: {self.code}")
        return [f"{self.request_id or 'no id'} ({self.gateway}): {problem}" for problem in found]


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted `values` lie (the nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
