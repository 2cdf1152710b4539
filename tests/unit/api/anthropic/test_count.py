"""Counted tokens are those that a message's usage has."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.api.anthropic.body import REFUSED, MessagesBody, draft_of
from penstock.api.anthropic.count import CountBody, count_draft_of
from penstock.api.hints import taken
from penstock.api.intake import Draft, job_of
from penstock.backends.mock.engine import MockBackend
from penstock.event import Done, Event, fold
from penstock.fleet import Pool, WorkerInfo
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.body_json import validate
from penstock.job import Batch, Claim
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.tasks import read_count
from penstock.transports.memory import MemoryTransport

TOOL = {"name": "f", "input_schema": {"type": "object"}}


def _count_draft(data: dict[str, Any]) -> Draft:
    return count_draft_of(validate(CountBody, taken(data, "messages", REFUSED)))


def test_what_is_not_in_the_prompt_is_without_effect() -> None:
    talk: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "system": "be brief", "tools": [TOOL]}
    plain = _count_draft(dict(talk))
    assert plain.task == "count"
    assert plain.max_tokens is None
    more = {"max_tokens": 9, "temperature": 0.5, "stop_sequences": ["x"], "stream": True, "top_p": 0.5}
    assert _count_draft(talk | more) == plain
    message = draft_of(validate(MessagesBody, talk | {"max_tokens": 9}))
    assert (plain.messages, plain.sampling["tools"]) == (message.messages, message.sampling["tools"])


texts = st.text(min_size=1, max_size=30)
blocks = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), min_size=1, max_size=3)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts | blocks}), max_size=4
)
bodies = st.fixed_dictionaries(
    {"messages": turns.map(lambda turns: [*turns, {"role": "user", "content": "and now?"}])},
    optional={"system": texts, "tools": st.just([TOOL])},
)


@given(bodies)
async def test_the_count_is_the_usage_of_the_same_message(data: dict[str, Any]) -> None:
    backend = MockBackend(tools=True)
    gateway = Gateway(Settings(), MemoryTransport(), Metrics())
    worker = WorkerInfo(id="w", models={"m": backend.capabilities}, num_slots=1, num_free=1)
    gateway.pool.look(Pool(depth=0, workers=(worker,)))
    message = draft_of(validate(MessagesBody, data | {"max_tokens": 2}))
    found = []
    for draft in (message, _count_draft(dict(data))):
        claim = Claim(job_of(gateway, Caller("", ""), draft, "g.1"), 1, time.monotonic() + 60)
        events: list[Event] = [event async for event in backend.generate(Batch((claim,)))]
        found.append(fold(events))
    answered, counted = found
    assert isinstance(answered.end, Done)
    assert read_count(counted.tokens) == answered.end.usage.prompt_tokens
