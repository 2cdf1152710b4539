"""The routes of Anthropic's Messages over one gateway. Its models are at `/v1/models`, which answers for both APIs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from penstock.api.answer import AnswerResponse
from penstock.api.anthropic.answers import MESSAGE_EVENTS, MessageAnswer
from penstock.api.anthropic.body import REFUSED, MessagesBody, draft_of
from penstock.api.anthropic.count import CountAnswer, CountBody, count_draft_of
from penstock.api.anthropic.dialect import ANTHROPIC
from penstock.api.anthropic.events import MessageEvents, events_of
from penstock.api.dialects import begin
from penstock.api.hints import taken
from penstock.api.intake import admit_and_submit, receive
from penstock.api.opened import Opened
from penstock.api.results import ResultResponse
from penstock.errors import PenstockError, UnsupportedTask
from penstock.event import Done, Terminal
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.openapi import SUBMIT_FAILURES, add_route, answer_of
from penstock.rich_token import Token
from penstock.tasks import read_count

MESSAGES = "/v1/messages"
COUNT_TOKENS = MESSAGES + "/count_tokens"


class AnthropicAPI:
    """See the head of this file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def router(self) -> APIRouter:
        router = APIRouter(tags=["anthropic"])
        answer = answer_of(MessageAnswer, MESSAGE_EVENTS, "The message; with `stream: true`, its events.")
        add_route(router, "POST", MESSAGES, self.messages, "messages_create", answer, SUBMIT_FAILURES)
        failures = (*SUBMIT_FAILURES, UnsupportedTask)
        counted = answer_of(CountAnswer)
        add_route(router, "POST", COUNT_TOKENS, self.count_tokens, "messages_count_tokens", counted, failures)
        return router

    async def messages(self, request: Request) -> Response:
        """Answer a conversation: Anthropic's Messages."""
        gateway, call = self.gateway, begin(request, MESSAGES, ANTHROPIC)
        received = await receive(
            gateway, request, call, MessagesBody, lambda data: taken(data, "messages", REFUSED), "messages"
        )
        opened = await admit_and_submit(gateway, call, received, [await received.into(draft_of)])
        return MessageResponse(opened, is_stream=bool(received.body.stream))

    async def count_tokens(self, request: Request) -> Response:
        """The number of tokens of a conversation, as a message's usage would have it."""
        gateway, call = self.gateway, begin(request, COUNT_TOKENS, ANTHROPIC)
        received = await receive(
            gateway, request, call, CountBody, lambda data: taken(data, "messages", REFUSED), "messages"
        )
        opened = await admit_and_submit(gateway, call, received, [await received.into(count_draft_of)])
        return ResultResponse(opened, lambda tokens, end: {"input_tokens": read_count(tokens)})


class MessageResponse(AnswerResponse):
    """A message, whole or event by event."""

    def __init__(self, opened: Opened, *, is_stream: bool) -> None:
        super().__init__(opened, is_stream=is_stream)
        self.events = MessageEvents(self.stream.job)

    def whole(self, ends: Sequence[Done]) -> bytes:
        (end,) = ends
        return msgspec.json.encode(events_of(self.stream.job, self.stream.tokens).message(end))

    def failure(self, end: Terminal) -> PenstockError | None:
        return events_of(self.stream.job, self.stream.tokens).failure(end)

    def idle_news(self) -> bytes:
        return b"".join(self.events.opening())

    def token_frames(self, reader: Reader, first: int, tokens: list[Token]) -> list[bytes]:
        return self.events.all_of(tokens)

    def end_frame(self, reader: Reader, end: Terminal) -> bytes:
        return b"".join(self.events.end(end))
