"""A deterministic engine simulator: the quickstart's model, and the instrument of the tests.

It steps a whole batch, as a real engine does, and gives each job one token a step. `text.py` makes the tokens; this
file decides when they come. It ends only at `max_tokens` or at a stop string. Step k of a batch is due at
`start + prefill + k * step`, on absolute deadlines, so that steps do not drift.

With `tools=true` a conversation that offers tools, and does not end in a tool's answer, is answered with a call of the
first of them (or of the one that `tool_choice` names), with arguments made from its schema.

With `embeds=true` it also gives embeddings: eight numbers, or as many as `dimensions` asks for, made from the text.

With `scripted=true` a prompt may hold a trigger (for tests; a plain mock takes it as text):

    [[fail]]        [[fail_after=N]]    that job fails with `backend_error`, before any token or after N
    [[hang]]        [[hang_after=N]]    the engine stops for its whole batch, forever; the event loop runs
    [[block_after=N]]                   the engine blocks the event loop of its process, forever
    [[crash]]       [[crash_after=N]]   the process kills itself with SIGKILL
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from penstock.backends.base import Backend
from penstock.backends.mock.text import embedding_of, token_source, tool_script, with_logprobs
from penstock.backends.stop import StopMatcher
from penstock.errors import BackendError
from penstock.event import Done, Event, Failed, FinishReason, Tokens, Usage
from penstock.fleet import Capabilities
from penstock.job import Batch, Claim, Job
from penstock.rich_token import Token

_TRIGGER: Final = re.compile(r"\[\[(fail|hang|block|crash)(?:_after=(\d{1,6}))?\]\]")


_ACCEPTS: Final = ("temperature", "top_p", "stop", "seed", "logprobs")
_LONG_PROMPT: Final = 64 * 1024
_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls")


class MockBackend(Backend):
    """`step_ms`: one step, whatever the batch. `step_ms_per_seq`: added for each job that runs in the step.
    `prefill_ms_per_token`: before the first step, for each prompt token of the batch. `chain`: tokens name their
    predecessors (`verify_chain`). `tools`, `embeds`, `scripted`: see the head of this file.
    """

    capabilities = Capabilities(accepts=_ACCEPTS, resumes=True)

    def __init__(
        self,
        step_ms: float = 0.0,
        prefill_ms_per_token: float = 0.0,
        step_ms_per_seq: float = 0.0,
        chain: bool = False,
        tools: bool = False,
        embeds: bool = False,
        scripted: bool = False,
    ) -> None:
        if min(step_ms, prefill_ms_per_token, step_ms_per_seq) < 0:
            raise ValueError("step_ms, prefill_ms_per_token and step_ms_per_seq must be at least 0")
        self._step_s = step_ms / 1000
        self._prefill_s = prefill_ms_per_token / 1000
        self._step_s_per_seq = step_ms_per_seq / 1000
        self._chain = chain
        self._tools = tools
        self._scripted = scripted
        accepts = (*_ACCEPTS, *(_TOOLS if tools else ()), *(("dimensions",) if embeds else ()))
        self.capabilities = Capabilities(accepts=accepts, resumes=True, embeds=embeds)

    def expected(self, job: Job, num: int | None = None) -> list[str]:
        """The first `num` (default: all `max_tokens`) tokens of the job's answer, stop strings aside."""
        token_of = token_source(job, self._chain)
        return [token_of(index) for index in range(job.sampling.max_tokens if num is None else num)]

    async def generate(self, batch: Batch) -> AsyncIterator[Event]:
        live = []
        for claim in batch.claims:
            live.append(_Sequence(claim, self))
            if claim.job.prompt and len(claim.job.prompt) > _LONG_PROMPT:  # milliseconds each, and there may be many
                await asyncio.sleep(0)
        due = time.monotonic() + self._prefill_s * sum(sequence.num_prompt_tokens for sequence in live)
        while live:
            due += self._step_s + self._step_s_per_seq * len(live)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            live = [sequence for sequence in live if sequence.claim.cancelled is None]
            if self._scripted and any(sequence.acts_up() for sequence in live):
                await asyncio.Event().wait()
            ended = False
            for sequence in live:
                event = sequence.step()
                if event is not None:
                    yield event
                    ended = ended or sequence.is_over
            if ended:
                live = [sequence for sequence in live if not sequence.is_over]

    def trigger(self, job: Job) -> tuple[str, int] | None:
        """The action that the prompt asks for and the number of tokens before it, in a scripted mock."""
        match = _TRIGGER.search(job.text) if self._scripted else None
        return None if match is None else (match[1], int(match[2] or 0))


class _Sequence:
    """One job in the engine."""

    __slots__ = (
        "attempt", "claim", "index", "is_over", "job_id", "last", "matcher", "num_prompt_tokens", "reason", "seq",
        "token_of", "trigger",
    )  # fmt: skip

    def __init__(self, claim: Claim, backend: MockBackend) -> None:
        job = claim.job
        self.claim = claim
        self.job_id = job.id
        self.attempt = claim.attempt
        self.index = self.seq = len(claim.tokens)
        self.last = job.sampling.max_tokens - 1
        self.reason: FinishReason = "length"
        self.token_of: Callable[[int], Token] = token_source(job, backend._chain)
        if job.inputs:
            self.token_of = embedding_of(job)
            self.last, self.reason = len(job.inputs) - 1, "stop"
        elif backend._tools and (script := tool_script(job)):
            self.token_of = script.__getitem__
            if len(script) <= job.sampling.max_tokens:
                self.last, self.reason = len(script) - 1, "tool_calls"
        elif job.sampling.logprobs is not None:
            self.token_of = with_logprobs(token_source(job, backend._chain), job.sampling.logprobs)
        self.matcher = StopMatcher(job.sampling.stop) if job.sampling.stop else None
        self.num_prompt_tokens = backend.count_prompt_tokens(job)
        self.trigger = backend.trigger(job)
        self.is_over = False

    def step(self) -> Event | None:
        """The next token, with the end where it is the last; None while a stop string is undecided."""
        index = self.index
        if self.trigger is not None and self.trigger == ("fail", index):
            self.is_over = True
            return Failed.of(self.job_id, self.attempt, self.seq, BackendError("A scripted failure."))
        if index > self.last:  # an earlier attempt delivered every token, but not the end
            return self._done((), self.reason)
        token = self.token_of(index)
        self.index = index + 1
        if self.matcher is None:
            if index == self.last:
                return self._done((token,), self.reason)
            self.seq = index + 1
            return Tokens(self.job_id, self.attempt, index, tokens=(token,))
        released, is_stopped = self.matcher.push(token)
        if is_stopped:
            return self._done(tuple(released), "stop")
        if index == self.last:
            return self._done((*released, *self.matcher.flush()), self.reason)
        if not released:
            return None
        seq = self.seq
        self.seq += len(released)
        return Tokens(self.job_id, self.attempt, seq, tokens=tuple(released))

    def acts_up(self) -> bool:
        """Crash or block now, if the job's trigger asks for it; True if the engine is to hang."""
        if self.trigger is None or self.trigger[1] != self.index:
            return False
        if self.trigger[0] == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.trigger[0] == "block":
            time.sleep(3600)
        return self.trigger[0] == "hang"

    def _done(self, tokens: tuple[Token, ...], reason: FinishReason) -> Done:
        self.is_over = True
        usage = Usage(self.num_prompt_tokens, 0 if self.claim.job.inputs else self.seq + len(tokens))
        return Done(self.job_id, self.attempt, self.seq, tokens=tokens, finish_reason=reason, usage=usage)
