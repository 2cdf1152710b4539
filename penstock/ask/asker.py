"""Asks a running server one thing at a time: the client, with every failure in the outcome. Knows no terminals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from penstock.client import Answer, AsyncClient
from penstock.client.core import OnRetry
from penstock.errors import PenstockError
from penstock.event import Usage

MAX_RETRIES = 9  # of one prompt of a file, in a row and without a new token

_SELDOM = ("reasoning", "tool_calls", "logprobs")  # left out of a line where a model gave none


@dataclass(frozen=True, kw_only=True)
class AskOutcome:
    """The result of one prompt: the server's answer, or an error and the text before it."""

    text: str = ""
    answer: Answer | None = None
    error: PenstockError | None = None

    @property
    def usage(self) -> Usage:
        return Usage() if self.answer is None else self.answer.usage

    def record(self) -> dict[str, Any]:
        """The fields of this outcome in a line of the answers file."""
        if self.answer is None:
            return {} if self.error is None else dict(self.error.envelope())
        usage = {**msgspec.to_builtins(self.usage), "total_tokens": self.usage.total_tokens}
        whole: dict[str, Any] = msgspec.to_builtins(self.answer)
        left_out = {"model", *(name for name in _SELDOM if not whole[name])}
        return {name: value for name, value in whole.items() if name not in left_out} | {"usage": usage}


class Asker:
    """A connection to one server, or to several of one pool. An async context manager; use one for many questions."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        max_connections: int = 1,
        max_retries: int = MAX_RETRIES,
        on_retry: OnRetry | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(
            *url.split(","),
            api_key=api_key,
            max_retries=max_retries,
            max_connections=max_connections + 1,  # one to cancel with
            on_retry=on_retry,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def reach(self) -> None:
        """Raises the error of a server that is not there, or that rejects the key."""
        await self._client.models()

    async def ask(self, body: Mapping[str, Any], on_text: Callable[[str], None] = lambda text: None) -> AskOutcome:
        """Ask until there is an answer or an error that retries cannot help; `on_text` gets each token once."""
        stream = self._client.stream(**body)
        try:
            async with stream:
                async for text in stream:
                    on_text(text)
        except PenstockError as error:
            return AskOutcome(text=stream.text, error=error)
        return AskOutcome(text=stream.text, answer=stream.answer)
