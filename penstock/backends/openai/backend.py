"""`OpenAIBackend`: one model behind the contract, run by upstream servers. See the package's head for its parts."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Literal

from penstock.backends.base import Backend, Embedded
from penstock.backends.openai import embeddings
from penstock.backends.openai.engines import EngineName
from penstock.backends.openai.failures import MAX_REST_S, Trouble, too_much
from penstock.backends.openai.health import Health
from penstock.backends.openai.http import Caller, Times
from penstock.backends.openai.options import Images, TierOptions, build_tiers, read_accepts, read_resumes
from penstock.backends.openai.request import Api, Form, build, can_continue
from penstock.backends.openai.retries import Patience, Trip
from penstock.backends.openai.upstreams import Ticket, Traffic
from penstock.backends.streams import Finish
from penstock.errors import PenstockError, WorkerLost
from penstock.event import Usage
from penstock.fleet import Capabilities
from penstock.job import Claim, Job
from penstock.rich_token import Token

logger = logging.getLogger("penstock.backends")

_LOST = "The model's upstream broke off, and an answer like this cannot be continued elsewhere."
# No tokenizer has longer tokens on average; log probabilities name up to 21 of them for each.
CHARS, CHARS_A_TOKEN = 65_536, 1024
SLACK = 64  # tokens beyond twice the limit: what an upstream counts otherwise than we do is less than that
_WRONG_TIMES = "connect_s, first_token_s, idle_s and eject_s must be above 0, retry_s and max_rest_s at least 0"
_LOUD = ("credentials", "not_found")  # the operator must fix these


class OpenAIBackend(Backend):
    """The options, one by one, are in docs/backends.md. `url` may name several replicas, joined by `+`; the options
    with 2 and 3 are the tiers that stand in for the first one.
    """

    ends_itself = True
    keeps_time = True

    def __init__(
        self,
        url: str,
        model: str = "",
        key_env: str = "",
        engine: EngineName = "any",
        slots: int | None = None,
        *,
        url2: str = "",
        model2: str = "",
        key_env2: str = "",
        engine2: EngineName = "any",
        slots2: int | None = None,
        url3: str = "",
        model3: str = "",
        key_env3: str = "",
        engine3: EngineName = "any",
        slots3: int | None = None,
        accepts: str = "",
        images: Images = "engine",
        api: Api = "both",
        task: Literal["generate", "embed", "both"] = "generate",
        resumes: str = "no",
        usage: bool = True,
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
        options = [
            TierOptions(url, model, key_env, engine, slots),
            TierOptions(url2, model2, key_env2, engine2, slots2),
            TierOptions(url3, model3, key_env3, engine3, slots3),
        ]
        tiers = build_tiers(options, health=health, max_failures=max_failures, eject_s=eject_s)
        taken = read_accepts(accepts, tiers, embeds=task != "generate", images=images)
        self._form = Form(api, asks_usage=usage, resumes=read_resumes(resumes, tiers), fetches="image_urls" in taken)
        self._patience = Patience(retry_s, tries)
        self._caller = Caller(Times(connect_s, first_token_s, idle_s, max_rest_s))
        self._traffic = Traffic(tiers, lambda *what: self.observe(*what))
        self._health = Health(self._traffic, self._caller, health)
        self.capabilities = Capabilities(
            accepts=taken,
            continuous=True,
            generates=task != "embed",
            embeds=task != "generate",
            resumes=bool(self._form.resumes),
            max_tokens=max_tokens,
        )

    async def start(self) -> None:
        """Does not wait for upstreams: they may start later, and the others serve while one of them is missing."""
        self._traffic.report_all()
        self._health.start()

    async def close(self) -> None:
        await self._health.stop()
        await self._caller.close()

    def _open(self, claim: Claim) -> AsyncIterator[Token | Finish]:
        if claim.job.inputs:
            return self._embeddings(claim)
        return self.stream(claim.job, claim.tokens, claim.deadline_at)

    async def embed(self, job: Job, inputs: Sequence[str]) -> Embedded:
        """All of `inputs` at one replica; tried elsewhere like any other request."""
        trip = Trip(self._traffic.tiers, self._patience, time.monotonic(), caller=_caller(job))
        while True:
            ticket = await self._traffic.take(trip, job.id)
            model = ticket.tier.model or self.name or job.model
            body = embeddings.build(job, inputs, model)
            try:
                data = await self._caller.post(ticket.tier, ticket.replica, model, embeddings.EMBEDDINGS, body)
                done = embeddings.read(data, len(inputs))
                self._traffic.began(ticket)
                self._traffic.leave(ticket, "ok")
                return done
            except Trouble as trouble:
                self._failed(job, trip, ticket, trouble, 0)
            finally:
                self._traffic.leave(ticket, "cancelled")

    async def stream(
        self, job: Job, tokens: Sequence[Token] = (), deadline_at: float = math.inf
    ) -> AsyncGenerator[Token | Finish, None]:
        """`deadline_at`, monotonic seconds: no wait for an upstream lasts longer."""
        said = list(tokens)
        if said and not can_continue(job, said, self._form):
            raise WorkerLost("Its worker died, and an answer like this cannot be continued.")
        trip = Trip(self._traffic.tiers, self._patience, time.monotonic(), deadline_at, caller=_caller(job))
        max_chars = CHARS + CHARS_A_TOKEN * job.sampling.max_tokens
        room = max_chars - sum(map(_size, said))
        while True:
            if len(said) >= job.sampling.max_tokens:  # all of it came, only the end did not
                yield Finish("length")
                return
            ticket = await self._traffic.take(trip, job.id)
            num_before = len(said)
            try:
                async with aclosing(self._ask(ticket, job, said)) as answer:
                    async for token in answer:
                        if isinstance(token, Finish):
                            self._traffic.leave(ticket, "ok")
                            yield Finish(token.reason, _whole_usage(token.usage, num_before))
                            return
                        if not ticket.has_begun:
                            self._traffic.began(ticket)
                        room -= _size(token)
                        if room < 0:
                            raise too_much(max_chars, job.sampling.max_tokens)
                        said.append(token)
                        yield token
                        if len(said) > 2 * job.sampling.max_tokens + SLACK:
                            logger.error("an upstream ignores max_tokens", extra={"upstream": ticket.replica.name})
                            yield Finish("length")
                            return
            except Trouble as trouble:
                self._failed(job, trip, ticket, trouble, len(said) - num_before)
                if said:
                    self._must_continue(job, said, trouble)
            except PenstockError:
                self._traffic.leave(ticket, "invalid")
                raise
            finally:
                self._traffic.leave(ticket, "cancelled")

    async def _ask(self, ticket: Ticket, job: Job, said: Sequence[Token]) -> AsyncGenerator[Token | Finish, None]:
        tier = ticket.tier
        model = tier.model or self.name or job.model
        path, body = build(job, said, model, tier.engine, self._form)
        async with aclosing(self._caller.ask(tier, ticket.replica, model, path, body)) as answer:
            async for token in answer:
                yield token

    def _failed(self, job: Job, trip: Trip, ticket: Ticket, trouble: Trouble, num_tokens: int) -> None:
        is_charged = trip.failed(ticket.replica, ticket.tier, trouble, time.monotonic(), num_tokens)
        self._traffic.failed(ticket, trouble, is_charged=is_charged)
        level = logging.ERROR if trouble.reason in _LOUD else logging.INFO
        logger.log(
            level,
            "an upstream failed a request: %s",
            trouble.reason if trouble.reason == "invalid" else trouble.error.message,
            extra={"request_id": job.id, "model": job.model, "upstream": ticket.replica.name, "tokens": num_tokens},
        )

    def _must_continue(self, job: Job, said: Sequence[Token], trouble: Trouble) -> None:
        """An answer has begun: raise unless it may go on elsewhere."""
        if trouble.again != "never" and can_continue(job, said, self._form):
            return
        # An error that the upstream reports is passed on; a break alone is `WorkerLost`, as a retry may help.
        raise WorkerLost(_LOST) if trouble.reason in ("cut", "timeout", "unreachable") else trouble.error


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
