"""An item of a stored response: sent back by value, by reference, or by the response's id, it makes the same job."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.hints import taken
from penstock.api.intake import Draft
from penstock.api.responses.body import NOTHING, REFUSED, Before, ResponseBody, draft_of
from penstock.api.responses.chain import conversation
from penstock.api.responses.events import response_of
from penstock.api.responses.references import resolved
from penstock.api.responses.stored import find_stored
from penstock.errors import InvalidRequest, RequestNotFound
from penstock.event import Done, FinishReason, Tokens, fold
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.body_json import validate
from penstock.job import Job, Sampling
from penstock.metrics import Metrics
from penstock.rich_token import RichToken, Token, ToolCall
from penstock.settings import Settings
from penstock.transports.base import Record
from penstock.transports.memory import MemoryTransport
from tests.support.answers import CALLING_TOKENS
from tests.support.stores import new_worker, run_one

ME = Caller("me", "me")
ASKED = {"role": "user", "content": "hi"}
NEXT = {"role": "user", "content": "go on"}


def _body(**data: Any) -> ResponseBody:
    return validate(ResponseBody, taken(data, "responses", REFUSED))


def _draft(before: Before = NOTHING, **data: Any) -> Draft:
    return draft_of(_body(**data), before)


class Site:
    """A gateway that is not started, over a store with ended responses."""

    def __init__(self, **settings: Any) -> None:
        self.store = MemoryTransport()
        self.gateway = Gateway(Settings(**settings), self.store, Metrics())

    async def answer(self, tokens: list[Token], reason: FinishReason = "stop", **data: Any) -> Record:
        """A response of these tokens."""
        draft = _draft(**({"input": [ASKED]} | data))
        job = Job(
            id=self.gateway.new_request_id(), model="m", messages=draft.messages, sampling=Sampling(**draft.sampling),
            caller="me", retention_s=60.0, notes=draft.notes,
        )  # fmt: skip
        await self.store.enlist(new_worker("w1"))
        await self.store.submit(job, "g1", 0)
        claim = await run_one(self.store, "w1", job.id)
        said = Tokens(job.id, claim.attempt, 0, tokens=tuple(tokens))
        end = Done(job.id, claim.attempt, len(tokens), finish_reason=reason)
        assert await self.store.emit("w1", [said, end] if tokens else [end]) == set()
        return await find_stored(self.gateway, ME, f"resp_{job.id}", "response_id")

    async def resolved(self, *items: Any, caller: Caller = ME) -> ResponseBody:
        await self.store.listen(self.gateway.id, lambda event: None, lambda: None)
        await self.store.tick(self.gateway.id)
        body = _body(input=list(items))
        body.input = await resolved(self.gateway, caller, body.input)
        return body


def _output(record: Record) -> list[dict[str, Any]]:
    folded = fold(record.events)
    output: list[dict[str, Any]] = response_of(record.job, folded.tokens, folded.end)["output"]
    return output


def _reference(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "item_reference", "id": item["id"]}


@given(CALLING_TOKENS, st.sampled_from(["stop", "length", "tool_calls"]))
def test_an_answer_is_the_same_by_value_by_reference_and_by_its_response(
    tokens: list[Token], reason: FinishReason
) -> None:
    async def check() -> None:
        site = Site()
        record = await site.answer(tokens, reason)
        output = _output(record)
        by_value = _draft(input=[ASKED, *output, NEXT])
        by_reference = draft_of(await site.resolved(ASKED, *map(_reference, output), NEXT))
        before, _ = await conversation(site.gateway, ME, record)
        by_response = _draft(before, input=[NEXT])
        assert by_value.messages == by_reference.messages == by_response.messages

    asyncio.run(check())


async def test_items_of_an_input_are_found_too() -> None:
    site = Site()
    record = await site.answer(["a"])
    body = await site.resolved({"id": f"msg_{record.job.id}_i0"}, NEXT)
    assert draft_of(body).messages == _draft(input=[ASKED, NEXT]).messages


async def test_the_result_of_a_call_may_follow_its_reference() -> None:
    site = Site()
    record = await site.answer([RichToken(tool_calls=(ToolCall(0, "c1", "f", "{}"),)), "x"], "tool_calls")
    output = {"type": "function_call_output", "call_id": "c1", "output": "sun"}
    messages = draft_of(await site.resolved(ASKED, *map(_reference, _output(record)), output)).messages or ()
    assert [message.role for message in messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("item_id", ["x", "msg_g1.none_0", "msg_{id}_9", "rs_{id}_0", "msg_{id}_i9", "msg_{id}"])
async def test_an_unknown_reference_is_refused_with_advice(item_id: str) -> None:
    site = Site()
    record = await site.answer(["a"])
    with pytest.raises(RequestNotFound, match="PENSTOCK_RETENTION_S") as refused:
        await site.resolved(NEXT, {"type": "item_reference", "id": item_id.format(id=record.job.id)})
    assert refused.value.param == "input.1.id"


async def test_an_item_of_another_caller_or_of_a_response_that_is_not_stored_is_unknown() -> None:
    site = Site()
    item = _reference(_output(await site.answer(["a"]))[0])
    with pytest.raises(RequestNotFound):
        await site.resolved(item, caller=Caller("you", "you"))
    await site.resolved(item)
    hidden = Job(id="g1.hidden", model="m", prompt="x", caller="me")
    await site.store.submit(hidden, "g1", 0)
    with pytest.raises(RequestNotFound):
        await site.resolved({"type": "item_reference", "id": "msg_g1.hidden_0"})


async def test_references_do_not_make_an_input_larger_than_a_body_may_be() -> None:
    site = Site(max_body_bytes=2000)
    item = _reference(_output(await site.answer(["a" * 500]))[0])
    await site.resolved(item)
    with pytest.raises(InvalidRequest, match="larger than 2000 bytes"):
        await site.resolved(item, item, item, item)
