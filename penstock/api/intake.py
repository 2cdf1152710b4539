"""The steps of every API that submits: read, check, turn a `Draft` into a `Job`, submit. Knows no API's form.

An API translates its body into a `Draft` by a pure function; what is the same for all of them (defaults, limits, the
model and what it can do, idempotency, all or none of several jobs) is here, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from fastapi import Request
from pydantic import BaseModel

from penstock.api.callers import authenticate, charge
from penstock.api.extras import NO_EXTRAS, Extras, split
from penstock.api.fields import MAX_INPUTS
from penstock.api.hints import Api, extras_of
from penstock.api.idempotency import hash_of, idempotency_key, submit_once
from penstock.api.opened import Opened
from penstock.errors import BodyTooLarge, InvalidRequest, UnsupportedParameter, UnsupportedTask
from penstock.fleet import Capabilities
from penstock.gateway.admission import INPUTS_PER_UNIT, Caller
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.body_bytes import read_body
from penstock.http.body_json import fields_of, parse_json, validate
from penstock.http.edge import Call
from penstock.http.large_bodies import LargeBodies, is_large
from penstock.job import Job, Message, OnDisconnect, Sampling, TokenIds
from penstock.settings import Settings
from penstock.settings.about import env_name
from penstock.tasks import VERBS

Body = TypeVar("Body", bound=BaseModel)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Draft:
    """A job as a client asks for it, in our words: None where the client gave no value.

    `is_kept`: a client may come back for it, so it is kept after its end. `names` gives the client's name for a field
    of ours where it has another one, so that an error names what the client wrote. `hints`: more of the sampling, which
    a model that does not have it goes without. `extras`: those that its API has in a place of their own.

    `is_begun`: the last message is the beginning of the answer.
    """

    model: str | None = None
    prompt: str | TokenIds | None = None
    messages: tuple[Message, ...] | None = None
    inputs: tuple[str | TokenIds, ...] = ()
    task: str = ""
    queries: tuple[str, ...] = ()
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    hints: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    background: bool = False
    is_kept: bool = False
    timeout_s: float | None = None
    on_disconnect: OnDisconnect | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    user: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    repeated: tuple[int, int] = (0, 0)
    names: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    is_begun: bool = False


@dataclass(slots=True)
class Received(Generic[Body]):
    """One valid body of `num_bytes`, what it has for engines, who sent it, and the idempotency key with it."""

    body: Body
    extras: Extras
    caller: Caller
    key: str | None
    body_hash: str
    num_bytes: int
    _large: LargeBodies | None

    async def into(self, translate: Callable[Concatenate[Body, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `translate`; for a large body in the thread, because it takes as long as parsing."""
        if self._large is None:
            return translate(self.body, *args, **kwargs)
        return await self._large.run(self.caller.rate_key, partial(translate, self.body, *args, **kwargs))


async def receive(
    gateway: Gateway,
    request: Request,
    call: Call,
    body: type[Body],
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data,
    api: Api | None = None,
) -> Received[Body]:
    """Authenticate, rate-limit, read and validate the body. `prepare` changes the JSON before `body` validates it.

    `api`: for the hints that an engine may know; None for an API that takes neither these nor extras.

    Raises what `read_body`, `parse_json`, `LargeBodies.run` and `authenticate` raise.
    """
    caller = await authenticate(gateway, request, call)
    settings = gateway.settings
    key, limit = idempotency_key(request), gateway.body_limit

    def prepare_all(data: dict[str, Any]) -> tuple[dict[str, Any], Extras]:
        if api is None:
            return prepare(data), NO_EXTRAS
        hints = extras_of(data, api)
        own, asked = split(prepare(data), fields_of(body), gateway.pool.extras)
        return own, Extras(asked, hints)

    with gateway.large_bodies.room(caller.rate_key) as room:
        max_bytes = getattr(settings, limit)
        raw = await read_body(request, max_bytes, settings.body_timeout_s, setting=limit, hold=room.hold)

        def read() -> tuple[Body, Extras, str]:
            data = parse_json(raw)
            own, extras = prepare_all(data)
            return validate(body, own), extras, "" if key is None else hash_of(call.endpoint, data)

        large = gateway.large_bodies if is_large(raw) else None
        parsed, extras, body_hash = read() if large is None else await large.run(caller.rate_key, read)
    return Received(parsed, extras, caller, key, body_hash, len(raw), large)


async def admit_and_submit(gateway: Gateway, call: Call, received: Received[Body], drafts: Sequence[Draft]) -> Opened:
    """Admit and submit all drafts, or none of them. The first job has the call's id.

    The rate limit counts them all, once all of them are valid; `receive` has counted one.
    """
    key = received.key
    permit = await gateway.admission.admit(received.caller)
    readers: list[Reader] = []
    try:
        jobs = []
        for number, draft in enumerate(drafts):
            job_id, size = gateway.new_request_id() if number else call.id, received.num_bytes
            is_kept, extras = key is not None, received.extras
            jobs.append(job_of(gateway, received.caller, draft, job_id, extras, has_key=is_kept, num_bytes=size))
            call.fields.setdefault("model", jobs[0].model)
        cost = sum([max(1, math.ceil(len(draft.inputs) / INPUTS_PER_UNIT)) for draft in drafts])
        await charge(gateway, call, received.caller, cost)
        for number, job in enumerate(jobs):
            if key is None:
                readers.append(await gateway.submit(job, call.endpoint))
            else:
                own = key if not number else f"{key}\t{number}"  # a client's own key holds no tab
                once = submit_once(gateway, call, job, call.endpoint, own, received.body_hash, received.caller.rate_key)
                readers.append(await once)
    except BaseException:
        for reader in readers:
            gateway.relay.leave(reader, is_delivered=False)
        permit.release()
        raise
    return Opened(gateway, call, readers, permit)


def job_of(
    gateway: Gateway,
    caller: Caller,
    draft: Draft,
    job_id: str,
    extras: Extras = NO_EXTRAS,
    *,
    has_key: bool = False,
    num_bytes: int = 0,
) -> Job:
    """The valid `Job` that a draft asks for, which came in a body of `num_bytes`.

    Raises `InvalidRequest`, `UnsupportedParameter`, `BodyTooLarge`, `ModelNotFound` and `ModelNotAllowed`, with the
    client's names.
    """
    settings = gateway.settings
    model, can = gateway.admission.choose_model(draft.model, caller)
    if num_bytes > settings.max_body_bytes and "images" not in can.accepts:
        limit = f"{settings.max_body_bytes} bytes ({env_name('max_body_bytes')})"
        raise BodyTooLarge(f"The request's body is larger than {limit}, and the model {model!r} takes no images.")
    _check_task(draft, model, can)
    if draft.timeout_s is not None and draft.timeout_s > settings.max_timeout_s:
        limit = f"{settings.max_timeout_s:g} ({env_name('max_timeout_s')})"
        raise InvalidRequest(f"'timeout_s' must be at most {limit}.", param="timeout_s")
    hints = {name: value for name, value in draft.hints.items() if name in can.accepts}
    sampling = Sampling(
        max_tokens=_max_tokens(draft, settings, can),
        max_tokens_given=draft.max_tokens is not None,
        **draft.sampling,
        **hints,
        extras=extras.for_model(can) | draft.extras | (_continuing(model, can) if draft.is_begun else {}),
    )
    has_images = any(message.parts for message in draft.messages or ())
    fetches = any(message.fetches for message in draft.messages or ())
    check_capabilities(sampling, model, can, has_images=has_images, fetches=fetches, names=draft.names)
    is_kept = has_key or draft.is_kept
    job = Job(
        id=job_id,
        model=model,
        prompt=draft.prompt,
        messages=draft.messages,
        inputs=draft.inputs,
        sampling=sampling,
        caller=caller.id,
        timeout_s=draft.timeout_s or settings.default_timeout_s,
        on_disconnect="continue" if draft.background else draft.on_disconnect or ("resume" if is_kept else "cancel"),
        retention_s=settings.background_retention_s if draft.background else settings.retention_s if is_kept else None,
        stream=draft.stream,
        metadata=draft.metadata,
        user=draft.user,
        notes=draft.notes,
        repeated=draft.repeated,
        task=draft.task,
        queries=draft.queries,
    )
    if job.has_token_ids and "token_ids" not in can.accepts:
        hint = " (LangChain's OpenAIEmbeddings sends text with check_embedding_ctx_length=False.)"
        message = f"The model {model!r} takes text, not token ids.{hint if job.inputs else ''}"
        raise UnsupportedParameter(message, param="input" if job.inputs else "prompt")
    return job


def _check_task(draft: Draft, model: str, can: Capabilities) -> None:
    if draft.task:
        if draft.task not in can.tasks:
            raise UnsupportedTask(f"The backend of the model {model!r} cannot {VERBS[draft.task]}.", param="model")
    elif not (can.embeds if draft.inputs else can.generates):
        raise InvalidRequest(f"The model {model!r} does not {'embed' if draft.inputs else 'generate'}.", param="model")


def _continuing(model: str, can: Capabilities) -> dict[str, bool]:
    """The extras that ask an engine to go on with the last message instead of answering it."""
    if "continue_final_message" not in can.accepts:
        problem = "cannot continue an answer that the client began: the last message must be the user's"
        raise UnsupportedParameter(f"The model {model!r} {problem}.", param="messages")
    # vLLM refuses the one without the other; SGLang does not have the other.
    asked = {"continue_final_message": True, "add_generation_prompt": False}
    return {name: value for name, value in asked.items() if name in can.accepts}


def _max_tokens(draft: Draft, settings: Settings, can: Capabilities) -> int:
    """The most tokens of the answer. A default stays within the model's own limit; what a client names is judged by it
    in `check_capabilities`. Raises `InvalidRequest`.
    """
    if draft.inputs or draft.task:
        return MAX_INPUTS  # the same for all, so that all of a model may share a batch
    if draft.max_tokens is None:
        return min(settings.default_max_tokens, can.max_tokens or settings.default_max_tokens)
    if draft.max_tokens > settings.max_tokens_limit:
        name = draft.names.get("max_tokens", "max_tokens")
        limit = f"{settings.max_tokens_limit} ({env_name('max_tokens_limit')})"
        raise InvalidRequest(f"'{name}' must be at most {limit}.", param=name)
    return draft.max_tokens


def check_capabilities(
    sampling: Sampling,
    model: str,
    can: Capabilities,
    *,
    has_images: bool = False,
    fetches: bool = False,
    names: Mapping[str, str] = {},
) -> None:
    """Refuse what the backend cannot honour, rather than ignore it. `fetches`: an image is to be fetched. `names`: what
    the client calls our fields.
    """
    if has_images and "images" not in can.accepts:
        raise UnsupportedParameter(f"The model {model!r} takes text only.", param=names.get("messages", "messages"))
    if fetches and "image_urls" not in can.accepts:
        says = f"The model {model!r} fetches no images: send them in the request itself, as data: URLs."
        raise UnsupportedParameter(says, param=names.get("messages", "messages"))
    for name in sampling.named():
        if name not in can.accepts:
            shown = names.get(name, name)
            raise UnsupportedParameter(f"The model {model!r} does not support {shown!r}.", param=shown)
    if sampling.max_tokens_given and can.max_tokens is not None and sampling.max_tokens > can.max_tokens:
        name = names.get("max_tokens", "max_tokens")
        limit = f"{can.max_tokens} (its backend's option max_tokens)"
        raise UnsupportedParameter(f"'{name}' must be at most {limit} for the model {model!r}.", param=name)
