"""The conversation of `previous_response_id`: put together from the responses that hold its parts.

A response keeps its own input, and of what stood before it no more than `MAX_REPEATED_BYTES`: the rest is held by an
earlier one, its base, which is kept as long as it is needed. So a long conversation is stored once, however many
responses go on from it, and a short one costs no look at any other.
"""

from __future__ import annotations

import msgspec

from penstock.api.requests import KEPT, find
from penstock.api.responses.body import Before, notes_of, own_messages
from penstock.api.responses.events import ResponseEvents
from penstock.api.responses.items import Turns
from penstock.errors import InvalidRequest, RequestNotFound
from penstock.event import Done, fold
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.job import Job, Message
from penstock.settings.about import env_name
from penstock.transports.base import Record
from penstock.transports.quota import answer_bytes

MAX_REPEATED_BYTES = 16_384
MAX_LINKS = 100
PARAM = "previous_response_id"


async def conversation(gateway: Gateway, caller: Caller, record: Record) -> tuple[Before, list[Record]]:
    """The conversation up to the answer of `record`, and the responses that hold what will not be stored again.

    Raises `RequestNotFound` and `InvalidRequest`.
    """
    links = await _links(gateway, caller, record)
    parts = [_said(link) for link in links]
    messages = tuple(message for part in reversed(parts) for message in part)
    setting = "max_image_body_bytes" if any(message.parts for message in messages) else "max_body_bytes"
    limit = getattr(gateway.settings, setting)
    if _size(messages) > limit:
        message = f"The conversation has grown larger than {limit} bytes ({env_name(setting)})."
        raise InvalidRequest(message, param=PARAM)
    if _size(parts[0]) > MAX_REPEATED_BYTES:
        return Before(messages, record.job.id, len(messages)), links
    return Before(messages, _base_of(record.job), len(messages) - len(parts[0])), links[1:]


async def asked(gateway: Gateway, caller: Caller, record: Record) -> tuple[Message, ...]:
    """The messages that `record` was given, without its instructions. Raises `RequestNotFound` and `InvalidRequest`."""
    links = await _links(gateway, caller, record)
    before = tuple(message for link in reversed(links[1:]) for message in _said(link))
    return before + own_messages(record.job)


async def _links(gateway: Gateway, caller: Caller, record: Record) -> list[Record]:
    """It, and the responses that hold the earlier parts of its conversation, the latest first."""
    links = [record]
    while (base := _base_of(links[-1].job)) is not None:
        if len(links) == MAX_LINKS:
            raise InvalidRequest(f"The conversation has more than {MAX_LINKS} long parts.", param=PARAM)
        found = await find(gateway, caller, base)
        if found is None:
            raise RequestNotFound(f"An earlier part of this conversation may have expired ({KEPT}).", param=PARAM)
        links.append(found)
    return links


def keep(gateway: Gateway, links: list[Record], job: Job) -> None:
    """Keep the requests that have a part of this job's conversation as long as the job may live."""
    life_s = job.timeout_s + (gateway.settings.retention_s if job.retention_s is None else job.retention_s)
    for link in links:
        num_bytes = answer_bytes(link.job, fold(link.events).tokens)
        gateway.store.prolong(link.job, num_bytes, life_s)


def _base_of(job: Job) -> str | None:
    notes = notes_of(job)
    return None if notes is None else notes.base


def _said(record: Record) -> tuple[Message, ...]:
    """The messages that a response adds to its base, and its answer. Raises `InvalidRequest` if it has none.

    The answer is what its items would be if the client sent them in an input.
    """
    folded = fold(record.events)
    if not isinstance(folded.end, Done) or folded.end.finish_reason == "cancelled":
        raise InvalidRequest("The response has no answer to go on from: it must have ended, and well.", param=PARAM)
    answer = ResponseEvents(record.job)
    answer.read(folded.tokens)
    turns = Turns(own_messages(record.job))
    for part in answer.parts:
        if part.kind == "text":
            turns.answer(part.text)
        elif part.kind == "reasoning":
            turns.think(part.text)
        else:
            turns.call(part.call_id, part.name, part.text)
    return tuple(turns.messages)


def _size(messages: tuple[Message, ...]) -> int:
    return len(msgspec.json.encode(messages))
