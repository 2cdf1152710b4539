"""A deterministic engine simulator: the quickstart's model, and the instrument of clients and tests.

It steps a whole batch, as a real engine does, and gives each job one token a step. `answer.py` makes the tokens; this
file decides when they come. Step k of a batch is due at `start + prefill + k * step`, on absolute deadlines, so that
steps do not drift. `docs/backends.md` has its options, and what a prompt may ask of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Final

from penstock.backends.base import Backend
from penstock.backends.mock.answer import NOTHING, Answer, Ends, answer_to, most_tokens
from penstock.backends.mock.script import trigger_of
from penstock.backends.mock.tasks import ACCEPTS, tokens_of
from penstock.backends.mock.text import token_source
from penstock.backends.stop import StopMatcher
from penstock.errors import BackendError, InvalidRequest, PenstockError, WorkerLost
from penstock.event import Done, Event, Failed, FinishReason, Tokens, Usage
from penstock.fleet import Capabilities
from penstock.job import Batch, Claim, Job
from penstock.rich_token import Token
from penstock.tasks import TASKS

_ALWAYS: Final = ("temperature", "top_p", "stop", "seed", "ignore_eos", "min_tokens", *ACCEPTS)
_ABILITIES: Final = {  # the option of each that can be switched off, and the fields that it accepts
    "tools": ("tools", "tool_choice", "parallel_tool_calls"),
    "json": ("response_format",),
    "reasoning": ("reasoning_effort",),
    "logprobs": ("logprobs",),
    "embeds": ("dimensions",),
}
_LONG_PROMPT: Final = 64 * 1024
_LOST: Final = "The request's worker died, and this mock does not continue a begun answer."


def _capabilities(*off: str, resumes: bool = True) -> Capabilities:
    """`off`: the abilities that it lacks."""
    accepts = [name for ability, names in _ABILITIES.items() if ability not in off for name in names]
    return Capabilities(accepts=(*_ALWAYS, *accepts), resumes=resumes, embeds="embeds" not in off, tasks=TASKS)


class MockBackend(Backend):
    """`step_ms`: one step, whatever the batch. `step_ms_per_seq`: added for each job that runs in the step.
    `prefill_ms_per_token`: before the first step, for each prompt token of the batch. `ends`: when sentences end.
    `tools`, `json`, `reasoning`, `logprobs`, `embeds`: false for an engine without them, to which the gateway refuses
    the fields. `resumes`: false for one that cannot continue a begun answer. `chain`: tokens name their predecessors
    (`verify_chain`). `scripted`: prompts may ask for failures.
    """

    capabilities = _capabilities()

    def __init__(
        self,
        step_ms: float = 0.0,
        prefill_ms_per_token: float = 0.0,
        step_ms_per_seq: float = 0.0,
        ends: Ends = "auto",
        tools: bool = True,
        json: bool = True,
        reasoning: bool = True,
        logprobs: bool = True,
        embeds: bool = True,
        resumes: bool = True,
        chain: bool = False,
        scripted: bool = False,
    ) -> None:
        if min(step_ms, prefill_ms_per_token, step_ms_per_seq) < 0:
            raise ValueError("step_ms, prefill_ms_per_token and step_ms_per_seq must be at least 0")
        self._step_s = step_ms / 1000
        self._prefill_s = prefill_ms_per_token / 1000
        self._step_s_per_seq = step_ms_per_seq / 1000
        self._ends: Ends = ends
        self._chain = chain
        self._scripted = scripted
        abilities = {"tools": tools, "json": json, "reasoning": reasoning, "logprobs": logprobs, "embeds": embeds}
        off = [name for name, is_on in abilities.items() if not is_on]
        self.capabilities = _capabilities(*off, resumes=resumes)

    def expected(self, job: Job, num: int | None = None) -> list[str]:
        """The first `num` (default: as many as there may be) tokens of the job's sentences, as if they did not end."""
        token_of = token_source(job, self._chain)
        return [token_of(index) for index in range(most_tokens(job) if num is None else num)]

    async def generate(self, batch: Batch) -> AsyncIterator[Event]:
        live = []
        for claim in batch.claims:
            if claim.tokens and not self.can_continue(claim):
                yield Failed.of(claim.job.id, claim.attempt, len(claim.tokens), WorkerLost(_LOST))
                continue
            if _is_long(claim.job):  # tens of milliseconds
                live.append(await asyncio.to_thread(_Sequence, claim, self))
                continue
            live.append(_Sequence(claim, self))
            if live[-1].is_costly:  # milliseconds each, and there may be many
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


def _is_long(job: Job) -> bool:
    """Whether its text is long: it is read, and for some tasks written, as a whole before the first token."""
    texts = (*job.inputs, *(message.content for message in job.messages or ()))
    return len(job.prompt or ()) + sum([len(text) for text in texts]) > _LONG_PROMPT


class _Sequence:
    """One job in the engine."""

    __slots__ = (
        "attempt", "claim", "error", "index", "is_over", "job_id", "last", "matcher", "num_prompt_tokens", "reason",
        "seq", "token_of", "trigger",
    )  # fmt: skip

    def __init__(self, claim: Claim, backend: MockBackend) -> None:
        job = claim.job
        self.claim = claim
        self.job_id = job.id
        self.attempt = claim.attempt
        self.index = self.seq = len(claim.tokens)
        self.error: PenstockError = BackendError("A scripted failure.")
        self.trigger = trigger_of(job) if backend._scripted else None
        self.num_prompt_tokens = backend.count_prompt_tokens(job)
        try:
            answer = self._result(job) if job.task else answer_to(job, backend._ends, backend._chain)
        except InvalidRequest as error:
            self.error, self.trigger = error.with_traceback(None), ("fail", self.index)
            answer = NOTHING
        self.last, self.reason, self.token_of = answer.num_tokens - 1, answer.reason, answer.token_of
        self.matcher = StopMatcher(job.sampling.stop) if job.sampling.stop else None
        self.is_over = False

    def _result(self, job: Job) -> Answer:
        """The answer to a job that has a task."""
        tokens, usage = tokens_of(job, self.num_prompt_tokens)
        self.num_prompt_tokens = usage.prompt_tokens
        return Answer(tokens.__getitem__, len(tokens), "stop")

    @property
    def is_costly(self) -> bool:
        """Whether it took milliseconds to prepare."""
        job = self.claim.job
        return bool(job.task) or bool(job.sampling.tools) or job.sampling.response_format is not None

    def step(self) -> Event | None:
        """The next token, with the end where it is the last; None while a stop string is undecided."""
        index = self.index
        if self.trigger is not None and self.trigger == ("fail", index):
            self.is_over = True
            return Failed.of(self.job_id, self.attempt, self.seq, self.error)
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
        usage = Usage(self.num_prompt_tokens, self.seq + len(tokens) if self.claim.job.generates else 0)
        return Done(self.job_id, self.attempt, self.seq, tokens=tokens, finish_reason=reason, usage=usage)
