"""How the tests of the `openai` backend ask it: the backend before its upstreams, claims, and what it reports."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

from penstock.backends import Backend, build_backend
from penstock.backends.openai import Upstream
from penstock.event import Completion, Done, Event, Failed, fold
from penstock.job import Batch, Claim, Job, Message, Sampling
from penstock.rich_token import Token
from tests.support.upstream import tokens_of

PROMPT = "one two three"
TALK = (Message("user", "Hi"),)


class Watch:
    """What a backend reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], float]] = []

    def __call__(self, metric: str, labels: Mapping[str, str], value: float) -> None:
        self.seen.append((metric, dict(labels), value))

    def outcomes(self) -> list[str]:
        return [labels["outcome"] for metric, labels, _ in self.seen if metric == "upstream_requests_total"]

    def fallbacks(self) -> list[tuple[str, str]]:
        return [(one["tier"], one["reason"]) for metric, one, _ in self.seen if metric == "upstream_fallbacks_total"]

    def ups(self) -> list[float]:
        return [value for metric, _, value in self.seen if metric == "upstream_up"]


@asynccontextmanager
async def running(url: str, watch: Watch | None = None, /, **options: str) -> AsyncIterator[Backend]:
    """With an `upstreams.2.url` the options `url`, `slots` and so on are those of the first upstream."""
    options = {"url": url, "eject_s": "0.05", **options}
    if "upstreams.2.url" in options:
        of_first = [field.name for field in fields(Upstream) if field.name in options]
        options |= {f"upstreams.1.{name}": options.pop(name) for name in of_first}
    made = build_backend("openai", options)
    made.name, made.observer = "m", watch
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def patience(mood: str) -> dict[str, Any]:
    """Short only where an upstream is to hang: a busy machine is slow."""
    return {"first_token_s": "0.5", "idle_s": "0.5"} if mood.startswith(("hang", "comments")) else {}


def claim(id: str = "j", tokens: tuple[Token, ...] = (), timeout_s: float = 60.0, **others: Any) -> Claim:
    """Of a prompt, unless `messages` or `inputs` are given. `others`: fields of `Job` and of `Sampling`."""
    own = {name: others.pop(name) for name in list(others) if name not in Sampling.__struct_fields__}
    if not own.get("messages") and not own.get("inputs"):
        own = {"prompt": PROMPT} | own
    job = Job(id=id, model="m", sampling=Sampling(**{"max_tokens": 5, **others}), **own)
    return Claim(job, 1, time.monotonic() + timeout_s, tokens)


async def ask(backend: Backend, one: Claim | None = None) -> Completion:
    one = one or claim()
    events: list[Event] = [event async for event in backend.generate(Batch((one,)))]
    return fold(events, Completion(one.tokens))


def done_of(said: Completion) -> Done:
    assert isinstance(said.end, Done), said
    return said.end


def failed_of(said: Completion) -> Failed:
    assert isinstance(said.end, Failed), said
    return said.end


def is_whole(said: Completion) -> bool:
    return list(said.tokens) == tokens_of(PROMPT, 5) and isinstance(said.end, Done)
