"""The promise that every backend makes: `generate(batch)` yields the events of its jobs, interleaved.

Two ways to write one. For an engine that steps a whole batch, override `generate`. For anything that streams one
answer at a time, override `stream(job)` alone: the base class runs the jobs of a batch side by side, counts tokens,
cuts at stop strings, and turns an exception into that job's `Failed`. A failing job never harms its neighbours.

    class Echo(Backend):
        async def stream(self, job):
            for word in job.text.split():
                yield word + " "

What `generate` owes: for each claim, `Tokens` whose `seq` continues from `len(claim.tokens)`, then exactly one `Done`
or `Failed`, all with the claim's `attempt`. It stops working for a claim soon after `claim.cancelled` is set and
then owes nothing more for it. Events yielded without a pause in between travel in one write. It may be cancelled or
closed at any pause, once each of its jobs has ended or left this worker. The worker counts for a `Done` without usage.

Found by name (`mock`), by entry point (group `penstock.backends`), or as `module:Class` / `file.py:Class`. The
constructor's parameters, by their annotations (`str`, `int`, `float`, `bool`, `Literal[…]`, or one of these with
`| None`), are the options that `--model NAME=BACKEND:option=value` may set. `tuple[Row, ...]` of a dataclass is a
table: `TABLE.NUMBER.FIELD=value`, in TOML `[[models.NAME.TABLE]]`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from penstock.backends.finish import Finish as Finish
from penstock.backends.finish import failure as failure
from penstock.backends.streams import side_by_side
from penstock.errors import BackendError, UnsupportedTask
from penstock.event import Event, Usage
from penstock.extras import problem_of
from penstock.fleet import Capabilities, Engines
from penstock.job import OPTIONAL_FIELDS as SAMPLING_FIELDS
from penstock.job import Batch, Claim, Job
from penstock.rich_token import RichToken, Token, encode_vector
from penstock.tasks import COUNT, DETOKENIZE, SCORE, TASKS, TOKENIZE, encode, encode_score
from penstock.tasks import Tokenized as Tokenized

# The names that `accepts` may contain, besides extras. "images" are part of the request itself; the engine fetches
# "image_urls". "token_ids": a prompt, or inputs to embed, may be token ids.
OPTIONAL_FIELDS = (*SAMPLING_FIELDS, "images", "image_urls", "token_ids")

EMBEDDED_AT_ONCE = 256  # inputs: an engine's answer in JSON has some 20 bytes for each number of each vector

Observer = Callable[[str, Mapping[str, str], float], None]


@dataclass(slots=True, frozen=True)
class Embedded:
    """One vector for each input, in order; `prompt_tokens` as the engine counted them, or None."""

    vectors: Sequence[Sequence[float]]
    prompt_tokens: int | None = None


@dataclass(slots=True, frozen=True)
class Scored:
    """One score for each input, in order, the higher the nearer; `prompt_tokens` as in `Embedded`."""

    scores: Sequence[float]
    prompt_tokens: int | None = None


class _OldName:
    """An attribute of `Backend` under the name that it had until November 2026.

    To set or read it is a `TypeError`: ignored, it would change how answers end, or end a worker whose engine is slow.
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> _OldName:
        if instance is None:
            return self
        raise self.error(owner)

    def __set__(self, instance: object, value: object) -> None:
        raise self.error(type(instance))

    def error(self, cls: type) -> TypeError:
        return TypeError(f"backend {cls.__qualname__}: {self.name} is now called {self.new}")


class Backend:
    """See the head of this file. One instance serves one model of one worker process, in that process' event loop.

    `name`: the model's, set by the caller that builds it. `handles_stop`: the engine applies stop strings and
    `max_tokens` itself. `has_own_timeouts`: silence is not a hang and does not end the worker; for engines in other
    processes.

    `capabilities` is a class attribute, or set in `__init__` when it depends on the options. Only the sampling fields
    in `capabilities.accepts` ever reach a backend set; others are refused at the gateway with the field's name. They
    may be extras, which engines have and the APIs do not: a backend that accepts "ignore_eos" finds it in
    `job.sampling.extras["ignore_eos"]`, of whatever JSON type the client gave.

    A backend with `stream` alone always accepts `stop`, and is continuous unless `capabilities` states otherwise: its
    jobs share nothing, so none waits for a batch.
    """

    capabilities: Capabilities = Capabilities()
    handles_stop: bool = False
    has_own_timeouts: bool = False
    name: str = ""
    observer: Observer | None = None
    ends_itself = _OldName("handles_stop")
    keeps_time = _OldName("has_own_timeouts")

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        has_generate = cls.generate is not Backend.generate
        if not has_generate and cls.stream is Backend.stream and not abstract:
            raise TypeError(f"backend {cls.__qualname__} must override generate(batch) or stream(job)")
        for method in (cls.generate, cls.stream):
            if inspect.iscoroutinefunction(method):
                raise TypeError(f"{method.__qualname__} is a coroutine: it must be an async generator, with a yield")
        for old in (Backend.ends_itself, Backend.keeps_time):
            if getattr(cls, old.name) is not old:
                raise old.error(cls)
        for name in cls.capabilities.accepts:
            if problem := problem_of(name, OPTIONAL_FIELDS):
                raise TypeError(f"backend {cls.__qualname__} accepts {name!r}, which {problem}")
        if unknown := set(cls.capabilities.tasks) - set(TASKS):
            raise TypeError(f"backend {cls.__qualname__} has the tasks {sorted(unknown)}; there are {TASKS}")
        if not has_generate and not cls.handles_stop:
            cls.capabilities = _with_stop(cls)

    async def start(self) -> None:
        """Load what the backend needs; the worker takes no work before this returns."""

    async def close(self) -> None:
        """Release every resource. Called once, after the last `generate` has ended."""

    def generate(self, batch: Batch) -> AsyncIterator[Event]:
        """Run a batch: the contract is at the head of this file. The default runs `stream` for each job."""
        return side_by_side(batch, self._open, self.count_prompt_tokens, self.capabilities.resumes, self.handles_stop)

    def stream(self, job: Job, *args: Any, **kwargs: Any) -> AsyncIterator[Token | Finish]:
        """Yield one answer's tokens: text, or a `RichToken`; empty ones are dropped. A `PenstockError` fails with its
        code.

        Override as `stream(self, job)`. With `capabilities.resumes` override as `stream(self, job, tokens)`: `tokens`
        (a tuple of str) were delivered by an earlier attempt; continue after them. The stream is cancelled
        at its current `await`, and closed, when the job is cancelled, has all its tokens or meets a stop string.

        A backend that sets `handles_stop` yields a `Finish` at last.
        """
        raise NotImplementedError

    async def embed(self, job: Job, inputs: Sequence[Any]) -> Embedded:
        """The vectors of `inputs`: some of `job.inputs`, at most `EMBEDDED_AT_ONCE` of them. They are texts, and with
        `token_ids` in `capabilities.accepts` also tuples of token ids.

        Only called with `capabilities.embeds`; which of `job.sampling` it reads is in `capabilities.accepts`.
        """
        raise NotImplementedError

    def live_engines(self) -> Engines | None:
        """How many of its engines may get a request now; None for a backend that is its own engine.

        Called twice a second, from any thread, also before `start`: it waits for nothing.
        """
        return None

    def can_continue(self, claim: Claim) -> bool:
        """Whether `generate` continues after `claim.tokens`, of which there is at least one.

        If not, a worker begins the answer again where no client has read any of it. Where one has, it calls `generate`
        all the same, which fails that job with `WorkerLost`.
        """
        return self.capabilities.resumes or not claim.job.generates

    async def count(self, job: Job) -> int:
        """Number of tokens that the model would read for the prompt or the conversation, as `usage` would have it.

        Only called with "count" in `capabilities.tasks`, as each of the following with its own name there. The default
        is for backends whose `count_prompt_tokens` is exact.
        """
        return self.count_prompt_tokens(job)

    async def tokenize(self, job: Job) -> Tokenized:
        """The tokens of the prompt or the conversation; `strs` if `job.sampling.return_token_strs`."""
        raise NotImplementedError

    async def detokenize(self, job: Job, ids: Sequence[int]) -> str:
        """The text of token ids."""
        raise NotImplementedError

    async def score(self, job: Job, queries: Sequence[str], inputs: Sequence[str]) -> Scored:
        """How near each of `inputs` is to the query at its place. `inputs` are those that lack a score."""
        raise NotImplementedError

    async def tokenizer_info(self, job: Job) -> dict[str, Any]:
        """The configuration of the tokenizer, in the form of `tokenizer_config.json`."""
        raise NotImplementedError

    def count_prompt_tokens(self, job: Job) -> int:
        """Number of tokens of the prompt, for `usage`. The default counts words between white space."""
        return len(job.text.split())

    def observe(self, metric: str, labels: Mapping[str, str], value: float = 1.0) -> None:
        """Report what events do not contain: a metric of `metrics/table.py`, with its labels except the model's.

        Label values come from the configuration, never from a request. Does nothing outside a worker.
        """
        if self.observer is not None:
            self.observer(metric, labels, value)

    def _open(self, claim: Claim) -> AsyncIterator[Token | Finish]:
        if claim.job.task:
            if claim.job.task not in self.capabilities.tasks:
                raise UnsupportedTask(f"The model's backend does not have the task {claim.job.task!r}.", param="model")
            return self._scores(claim) if claim.job.task == SCORE else self._result(claim)
        if claim.job.inputs:
            return self._embeddings(claim)
        if self.capabilities.resumes:
            return self.stream(claim.job, claim.tokens)
        return self.stream(claim.job)

    async def _embeddings(self, claim: Claim) -> AsyncIterator[Token | Finish]:
        inputs = claim.job.inputs
        num_tokens: int | None = None if claim.tokens else 0
        for first in range(len(claim.tokens), len(inputs), EMBEDDED_AT_ONCE):
            done = await self.embed(claim.job, inputs[first : first + EMBEDDED_AT_ONCE])
            known = num_tokens is not None and done.prompt_tokens is not None
            num_tokens = (num_tokens or 0) + (done.prompt_tokens or 0) if known else None
            for vector in done.vectors:
                yield RichToken(embedding=encode_vector(vector))
        yield Finish("stop", None if num_tokens is None else Usage(num_tokens))

    async def _result(self, claim: Claim) -> AsyncIterator[Token | Finish]:
        """The token of a task: the table of tasks is at the head of `penstock/tasks.py`."""
        if not claim.tokens:
            yield await self._whole_result(claim.job)
        yield Finish("stop", Usage())  # a model has read nothing

    async def _scores(self, claim: Claim) -> AsyncIterator[Token | Finish]:
        job, num = claim.job, len(claim.tokens)
        queries = job.queries if len(job.queries) > 1 else job.queries * len(job.inputs)
        texts = [text for text in job.inputs[num:] if isinstance(text, str)]
        done = await self.score(job, queries[num:], texts) if texts else Scored(())
        if len(done.scores) != len(job.inputs) - num:
            raise BackendError("The model's backend did not give one score for each input.")
        for score in done.scores:
            yield encode_score(score)
        yield Finish("stop", None if num or done.prompt_tokens is None else Usage(done.prompt_tokens))

    async def _whole_result(self, job: Job) -> str:
        if job.task == COUNT:
            return encode(await self.count(job))
        if job.task == TOKENIZE:
            return encode(await self.tokenize(job))
        if job.task == DETOKENIZE:
            return await self.detokenize(job, [int(one) for one in job.inputs[0]])
        return encode(await self.tokenizer_info(job))


def engines_of(backends: Mapping[str, Backend]) -> dict[str, Engines]:
    """`WorkerInfo.engines` of a worker with these backends."""
    return {name: seen for name, backend in backends.items() if (seen := backend.live_engines()) is not None}


def _with_stop(cls: type[Backend]) -> Capabilities:
    """The abilities of a backend with `stream` alone: the base class applies stop strings for it."""
    can = cls.capabilities
    if can is Backend.capabilities:
        return Capabilities(accepts=("stop",), continuous=True)
    if "stop" in can.accepts:
        return can
    return replace(can, accepts=(*can.accepts, "stop"))
