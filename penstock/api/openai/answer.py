"""How one or several choices become one HTTP answer. `ChoicesResponse` joins several `ChoiceResponse`s.

Each choice is a request of its own, with its own job; several of them share one connection and one `[DONE]`. If one
fails, all end: a client that asked for n answers cannot use fewer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.answer import SSE_HEADERS, STATUS_WAIT_S, AnswerResponse, usage
from penstock.api.openai.form import Form
from penstock.errors import Cancelled, PenstockError
from penstock.event import Done, Failed, Terminal
from penstock.gateway.admission import Permit
from penstock.gateway.gateway import Gateway
from penstock.gateway.keepalive import StreamHealth
from penstock.gateway.relay import Reader
from penstock.http.connection import CLIENT, ClientChannel, Disconnect
from penstock.http.edge import Call, error_response
from penstock.rich_token import Token, join
from penstock.sse import KEEPALIVE, unbroken


def failure(end: Terminal | None) -> PenstockError | None:
    """The error that an end is for a client of these APIs, which know no cancelled answer."""
    if isinstance(end, Failed):
        return end.error()
    if end is not None and end.finish_reason == "cancelled":
        return Cancelled("The request was cancelled.")
    return None


class ChoiceResponse(AnswerResponse):
    """One choice; unless `is_alone`, a part of `ChoicesResponse`."""

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        reader: Reader,
        permit: Permit,
        form: Form,
        *,
        is_stream: bool,
        index: int = 0,
        is_alone: bool = True,
    ) -> None:
        super().__init__(gateway, call, reader, permit, is_stream=is_stream)
        self.form = form
        self.index = index
        self.is_alone = is_alone

    def whole(self, end: Done) -> bytes:
        return self.form.whole([self.choice(end)], usage(end))

    def choice(self, end: Done) -> dict[str, Any]:
        return self.form.choice(self.index, join(self.stream.tokens), end.finish_reason)

    def token_frames(self, first: int, tokens: list[Token]) -> list[bytes]:
        form, index = self.form, self.index
        frames = [form.token(index, token) for token in tokens]
        return frames if first or not tokens else [*form.open(index), *frames]

    def end_frame(self, end: Terminal) -> bytes:
        error = failure(end)
        if error is not None:
            return self.form.error(error)
        assert isinstance(end, Done)
        opening = b"" if self.stream.tokens else b"".join(self.form.open(self.index))
        closing = self.form.close(usage(end)) if self.is_alone else b""
        return opening + self.form.finish(self.index, end.finish_reason) + closing


class ChoicesResponse(Response):
    """Several choices, whole or interleaved on one stream. Owns their readers and their one permit."""

    def __init__(self, choices: Sequence[ChoiceResponse], num_prompts: int = 1) -> None:
        self.background = None
        self.choices = choices
        self.num_prompts = num_prompts
        first = choices[0]
        self.gateway, self.call, self.permit, self.form = first.gateway, first.call, first.permit, first.form
        self._open = list(choices)
        self._changed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnect = Disconnect(scope, self._changed.set)
        watching = [asyncio.get_running_loop().create_task(self._watch(choice.reader)) for choice in self.choices]
        is_delivered = False
        self.gateway.metrics.stream_opened()
        try:
            if self.choices[0].is_stream:
                is_delivered = await self._stream(disconnect, scope, receive, send)
            else:
                is_delivered = await self._whole(disconnect, scope, receive, send)
        finally:
            disconnect.stop()
            for task in watching:
                task.cancel()
            self._account(is_delivered)
            for choice in self.choices:
                self.gateway.relay.leave(choice.reader, is_delivered=is_delivered)
            self.permit.release()
            self.gateway.metrics.stream_closed()

    async def _watch(self, reader: Reader) -> None:
        while True:
            await reader.changed()
            self._changed.set()

    async def _wait(self, timeout_s: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def _error(self) -> PenstockError | None:
        return next(filter(None, (failure(choice.stream.end) for choice in self.choices)), None)

    def _usage(self) -> dict[str, int]:
        """The prompt of several answers to it counts once, as with OpenAI."""
        ends = [choice.stream.end for choice in self.choices]
        each = [usage(end) for end in ends if isinstance(end, Done)]
        per_prompt = max(1, len(self.choices) // self.num_prompts)
        prompt = sum(one["prompt_tokens"] for one in each[::per_prompt])
        completion = sum(one["completion_tokens"] for one in each)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def _whole(self, disconnect: Disconnect, scope: Scope, receive: Receive, send: Send) -> bool:
        while (error := self._error()) is None and any(choice.stream.end is None for choice in self.choices):
            if disconnect.has_happened:
                return False
            await self._wait()
        if error is not None:
            await error_response(error, self.call)(scope, receive, send)
            return True
        choices = [choice.choice(choice.stream.end) for choice in self.choices if isinstance(choice.stream.end, Done)]
        body = self.form.whole(choices, self._usage())
        await Response(body, media_type="application/json")(scope, receive, send)
        return True

    async def _stream(self, disconnect: Disconnect, scope: Scope, receive: Receive, send: Send) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + STATUS_WAIT_S
        while not any(choice.reader.has_news for choice in self.choices) and loop.time() < until:
            if disconnect.has_happened:
                return False
            await self._wait(until - loop.time())
        error = self._error()
        if error is not None and not any(choice.stream.tokens for choice in self.choices):
            await error_response(error, self.call)(scope, receive, send)
            return True
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        client: ClientChannel = scope[CLIENT]
        health = StreamHealth(self._changed.set, client.abort)
        self.gateway.keepalive.watched.add(health)
        try:
            return await self._relay(disconnect, health, send)
        finally:
            self.gateway.keepalive.watched.discard(health)

    async def _relay(self, disconnect: Disconnect, health: StreamHealth, send: Send) -> bool:
        while not disconnect.has_happened:
            body, is_over = self._news()
            if not body and health.is_due:
                body = KEEPALIVE
            if body:
                health.is_due = False
                health.is_sending = True
                await send({"type": "http.response.body", "body": unbroken(body), "more_body": not is_over})
                health.is_sending = False
                health.num_sent += 1
            if is_over:
                return True
            if not body:
                await self._wait()
        return False

    def _news(self) -> tuple[bytes, bool]:
        """What waits of every choice, and whether that was the end of all."""
        frames: list[bytes] = []
        for choice in list(self._open):
            if choice.reader.has_news:
                body, end = choice.news()
                frames.append(body)
                if end is not None:
                    self._open.remove(choice)
                    if failure(end) is not None:
                        return b"".join(frames), True
        if not self._open:
            frames.append(self.form.close(self._usage()))
        return b"".join(frames), not self._open

    def _account(self, is_delivered: bool) -> None:
        for choice in self.choices:
            choice.account(is_delivered)
        self.call.fields["completion_tokens"] = sum(len(choice.stream.tokens) for choice in self.choices)
        error = self._error()
        if is_delivered and error is not None:
            self.call.outcome = error.code
