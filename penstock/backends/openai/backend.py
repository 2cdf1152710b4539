"""`OpenAIBackend`: one model behind the contract, run by upstream servers. See the package's head for its parts."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

from msgspec.structs import replace

from penstock.backends.base import Backend, Embedded, Finish, Scored, Tokenized
from penstock.backends.openai import embeddings, scores
from penstock.backends.openai.failures import MAX_REST_S, UpstreamError, lacks, too_much
from penstock.backends.openai.first_token import Patience
from penstock.backends.openai.health import Health
from penstock.backends.openai.http import Times, UpstreamHttp
from penstock.backends.openai.options import (
    ENGINE,
    Images,
    Upstream,
    build_tiers,
    read_accepts,
    read_kinds,
    read_resumes,
    read_tasks,
)
from penstock.backends.openai.replicas import Tier
from penstock.backends.openai.request import Api, ReasoningHistory, RequestShape, build, can_continue, conversation
from penstock.backends.openai.retries import RetryLimits, RetryPlan
from penstock.backends.openai.steps import Steps, T
from penstock.backends.openai.tokenizer import FORMS, Prompt
from penstock.backends.openai.upstreams import Ticket, Upstreams
from penstock.errors import PenstockError, WorkerLost
from penstock.event import Usage
from penstock.fleet import Capabilities, Engines
from penstock.job import Claim, Job, TokenIds
from penstock.rich_token import Token

logger = logging.getLogger("penstock.backends")

_LOST = "The model's upstream failed in the middle of an answer that no other upstream can continue."
# No tokenizer has longer tokens on average; log probabilities name up to 21 of them for each.
CHARS, CHARS_A_TOKEN = 65_536, 1024
SLACK = 64  # tokens beyond twice the limit: what an upstream counts otherwise than we do is less than that
_WRONG_TIMES = "connect_s, first_token_s, idle_s and eject_s must be above 0, retry_s and max_rest_s at least 0"
_LOUD = ("credentials", "not_found")  # the operator must fix these


class OpenAIBackend(Backend):
    """The options, one by one, are in docs/backends.md. A request goes to the first of `upstreams` that can take it."""

    handles_stop = True
    has_own_timeouts = True

    def __init__(
        self,
        upstreams: tuple[Upstream, ...],
        *,
        accepts: str = "",
        images: Images = "engine",
        api: Api = "both",
        task: str = "generate",
        tokenizer: Literal["engine", "none"] = "engine",
        resumes: str = "no",
        usage: bool = True,
        reasoning_history: ReasoningHistory = "engine",
        max_tokens: int | None = None,
        health: str = "",
        connect_s: float = 5.0,
        first_token_s: float = 60.0,
        idle_s: float = 30.0,
        retry_s: float = 30.0,
        tries: int = 3,
        max_failures: int = 3,
        eject_s: float = 1.0,
        max_rest_s: float = MAX_REST_S,
    ) -> None:
        if min(connect_s, first_token_s, idle_s, eject_s) <= 0 or min(retry_s, max_rest_s) < 0:
            raise ValueError(_WRONG_TIMES)
        if min(tries, max_failures) < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError("tries, max_failures and max_tokens must be at least 1")
        tiers = build_tiers(upstreams, health=health, max_failures=max_failures, eject_s=eject_s)
        kinds = read_kinds(task, tiers)
        taken = read_accepts(accepts, tiers, embeds="embed" in kinds, images=images)
        self._shape = RequestShape(api, usage, read_resumes(resumes, tiers), "image_urls" in taken, reasoning_history)
        self._limits = RetryLimits(retry_s, tries)
        self._http = UpstreamHttp(Times(connect_s, first_token_s, idle_s, max_rest_s))
        self._upstreams = Upstreams(tiers, lambda *what: self.observe(*what), lambda: self.name)
        self._health = Health(self._upstreams, self._http, health)
        self._is_declared = ENGINE not in (accepts or ENGINE).split("+") or images != "engine"
        self.capabilities = Capabilities(
            accepts=taken,
            continuous=True,
            generates="generate" in kinds,
            embeds="embed" in kinds,
            resumes=bool(self._shape.resumes),
            max_tokens=max_tokens,
            tasks=read_tasks(kinds, tiers, has_tokenizer=tokenizer == "engine"),
        )

    async def start(self) -> None:
        """Does not wait for upstreams: they may start later, and the others serve while one of them is missing.

        An engine whose images depend on its model is asked for them, for a moment.
        """
        if not self._is_declared and await self._have_vision():
            accepts = (*self.capabilities.accepts, "images")
            self.capabilities = replace(self.capabilities, accepts=accepts)
        self._upstreams.report_all()
        self._health.start()

    async def _have_vision(self) -> bool:
        """Whether images can be declared because those engines take them that have to be asked."""
        tiers = self._upstreams.tiers
        asked = [(tier, one) for tier, one in self._upstreams.replicas() if tier.engine.vision]
        if not asked or any(not tier.engine.vision and "images" not in tier.engine.accepts for tier in tiers):
            return False
        return all(await asyncio.gather(*(self._http.has_vision(*one) for one in asked)))

    def live_engines(self) -> Engines:
        """One whose ejection is over counts as up: only the next request shows whether it is."""
        now = time.monotonic()
        states = [replica.breaker.state(now) for _, replica in self._upstreams.replicas()]
        return Engines(num_up=sum(state != "open" for state in states), num=len(states))

    async def close(self) -> None:
        await self._health.stop()
        await self._http.close()

    def can_continue(self, claim: Claim) -> bool:
        return bool(claim.job.inputs) or can_continue(claim.job, claim.tokens, self._shape)

    def _open(self, claim: Claim) -> AsyncIterator[Token | Finish]:
        if not claim.job.generates:
            return super()._open(claim)
        return self.stream(claim.job, claim.tokens, claim.deadline_at)

    async def embed(self, job: Job, inputs: Sequence[str | TokenIds]) -> Embedded:
        return await self._whole(job, lambda tier, model: embeddings.embed(job, inputs, model))

    async def count(self, job: Job) -> int:
        return len((await self.tokenize(job)).ids)

    async def tokenize(self, job: Job) -> Tokenized:
        def steps(tier: Tier, model: str) -> Steps[Tokenized]:
            talk = {} if job.messages is None else conversation(job, tier.engine, self._shape)
            return FORMS[tier.engine.tokenizer].tokenize(Prompt.of(job, model, talk))

        return await self._whole(job, steps)

    async def detokenize(self, job: Job, ids: Sequence[int]) -> str:
        return await self._whole(job, lambda tier, model: FORMS[tier.engine.tokenizer].detokenize(model, ids))

    async def tokenizer_info(self, job: Job) -> dict[str, Any]:
        return await self._whole(job, lambda tier, model: FORMS[tier.engine.tokenizer].info())

    async def score(self, job: Job, queries: Sequence[str], inputs: Sequence[str]) -> Scored:
        return await self._whole(job, lambda tier, model: scores.score(tier.engine.scores, model, queries, inputs))

    async def _whole(self, job: Job, steps_at: Callable[[Tier, str], Steps[T]]) -> T:
        """All steps at one replica; tried elsewhere like any other request."""
        plan = RetryPlan(self._upstreams.tiers, self._limits, time.monotonic(), caller=_caller(job))
        while True:
            ticket = await self._upstreams.take(plan, job.id)
            model = ticket.tier.model or self.name or job.model
            try:
                patience = _patience(plan, ticket, time.monotonic() + job.timeout_s)
                result = await self._take_steps(job, ticket, model, patience, steps_at(ticket.tier, model))
                self._upstreams.began(ticket, plan)
                self._upstreams.leave(ticket, "ok")
                return result
            except UpstreamError as failure:
                self._failed(job, plan, ticket, failure, 0)
            except PenstockError:
                self._upstreams.leave(ticket, "invalid")
                raise
            finally:
                self._upstreams.leave(ticket, "cancelled")

    async def _take_steps(self, job: Job, ticket: Ticket, model: str, patience: Patience, steps: Steps[T]) -> T:
        ask = next(steps)
        try:
            while True:
                ask = steps.send(await self._http.whole(ticket.tier, ticket.replica, model, ask, patience))
        except StopIteration as end:
            result: T = end.value
            return result
        except UpstreamError as failure:
            raise (lacks(ask.path, model) if job.task and failure.reason == "not_found" else failure) from None

    async def stream(
        self, job: Job, tokens: Sequence[Token] = (), deadline_at: float = math.inf
    ) -> AsyncGenerator[Token | Finish, None]:
        """`deadline_at`, monotonic seconds: no wait for an upstream lasts longer."""
        so_far = list(tokens)
        if so_far and not can_continue(job, so_far, self._shape):
            raise WorkerLost("The request's worker died, and an answer of this kind cannot be continued.")
        plan = RetryPlan(self._upstreams.tiers, self._limits, time.monotonic(), deadline_at, caller=_caller(job))
        max_chars = CHARS + CHARS_A_TOKEN * job.sampling.max_tokens
        room = max_chars - sum(map(_size, so_far))
        while True:
            if len(so_far) >= job.sampling.max_tokens:  # all of it came, only the end did not
                yield Finish("length")
                return
            ticket = await self._upstreams.take(plan, job.id)
            num_before = len(so_far)
            try:
                async with aclosing(self._ask(ticket, job, so_far, _patience(plan, ticket, deadline_at))) as answer:
                    async for token in answer:
                        if isinstance(token, Finish):
                            self._upstreams.leave(ticket, "ok")
                            yield Finish(token.reason, _whole_usage(token.usage, num_before))
                            return
                        if not ticket.has_begun:
                            self._upstreams.began(ticket, plan)
                        room -= _size(token)
                        if room < 0:
                            raise too_much(max_chars, job.sampling.max_tokens)
                        so_far.append(token)
                        yield token
                        if self._has_enough(job, len(so_far), ticket):
                            yield Finish("length")
                            return
            except UpstreamError as failure:
                self._failed(job, plan, ticket, failure, len(so_far) - num_before)
                if so_far:
                    self._must_continue(job, so_far, failure)
            except PenstockError:
                self._upstreams.leave(ticket, "invalid")
                raise
            finally:
                self._upstreams.leave(ticket, "cancelled")

    def _has_enough(self, job: Job, num_tokens: int, ticket: Ticket) -> bool:
        """Whether to leave the engine: it was given no limit and reached ours, or it ignores the one given."""
        if not job.sampling.max_tokens_given:
            return num_tokens >= job.sampling.max_tokens
        if num_tokens <= 2 * job.sampling.max_tokens + SLACK:
            return False
        logger.error("an upstream ignores max_tokens", extra={"upstream": ticket.replica.name})
        return True

    async def _ask(
        self, ticket: Ticket, job: Job, so_far: Sequence[Token], patience: Patience
    ) -> AsyncGenerator[Token | Finish, None]:
        tier = ticket.tier
        model = tier.model or self.name or job.model
        path, body = build(job, so_far, model, tier.engine, self._shape)
        async with aclosing(self._http.ask(tier, ticket.replica, model, path, body, patience, job.id)) as answer:
            async for token in answer:
                yield token

    def _failed(self, job: Job, plan: RetryPlan, ticket: Ticket, failure: UpstreamError, num_tokens: int) -> None:
        now, is_trial = time.monotonic(), ticket.is_trial
        is_charged = plan.failed(ticket.replica, ticket.tier, failure, now, num_tokens, is_trial=is_trial)
        self._upstreams.failed(ticket, failure, is_charged=is_charged)
        level = logging.ERROR if failure.reason in _LOUD else logging.INFO
        logger.log(
            level,
            "an upstream failed a request: %s",
            failure.reason if failure.reason == "invalid" else failure.error.message,
            extra={"request_id": job.id, "model": job.model, "upstream": ticket.replica.name, "tokens": num_tokens},
        )

    def _must_continue(self, job: Job, so_far: Sequence[Token], failure: UpstreamError) -> None:
        """An answer has begun: raise unless it may go on elsewhere."""
        if failure.again != "never" and can_continue(job, so_far, self._shape):
            return
        # An error that the upstream reports is passed on; a break alone is `WorkerLost`, as a retry may help.
        raise WorkerLost(_LOST) if failure.reason in ("cut", "timeout", "unreachable") else failure.error


def _patience(plan: RetryPlan, ticket: Ticket, deadline_at: float) -> Patience:
    return Patience(lambda: plan.has_other(ticket.replica, ticket.tier, time.monotonic()), deadline_at)


def _caller(job: Job) -> str:
    """The caller that an upstream's limit may apply to."""
    return job.caller or job.user


def _size(token: Token) -> int:
    """Characters."""
    if isinstance(token, str):
        return len(token)
    calls = sum(len(call.id) + len(call.name) + len(call.arguments) for call in token.tool_calls)
    names = sum(len(one.token) + sum(len(name) for name, _ in one.top) for one in token.logprobs)
    return len(token.text) + len(token.reasoning) + calls + names


def _whole_usage(usage: Usage | None, num_before: int) -> Usage | None:
    """An upstream that continues an answer counts the text so far as prompt; the client's usage has it as answer."""
    if usage is None or not num_before:
        return usage
    return Usage(max(0, usage.prompt_tokens - num_before), usage.completion_tokens + num_before)
