"""The base class of backends: what it does for one that overrides `stream` alone, and what it refuses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest

from penstock.backends import Backend
from penstock.errors import Overloaded
from penstock.event import Completion, Done, Event, Failed, fold
from penstock.fleet import Capabilities
from penstock.job import Batch, Claim, Job, Sampling
from penstock.rich_token import RichToken, ToolCall, call_id_of, join
from tests.support.waiting import wait_until


class Echo(Backend):
    async def stream(self, job: Job) -> AsyncIterator[str]:
        for word in job.text.split():
            yield word + " "


def claim(prompt: str, id: str = "j", tokens: tuple[str, ...] = (), **sampling: object) -> Claim:
    job = Job(id=id, model="m", prompt=prompt, sampling=Sampling(**sampling))  # type: ignore[arg-type]
    return Claim(job, attempt=3, deadline_at=time.monotonic() + 60, tokens=tokens)


async def events_of(backend: Backend, *claims: Claim) -> list[Event]:
    return [event async for event in backend.generate(Batch(claims))]


async def run(backend: Backend, *claims: Claim) -> dict[str, Completion]:
    events = await events_of(backend, *claims)
    return {c.job.id: fold(event for event in events if event.job_id == c.job.id) for c in claims}


async def test_ten_lines_are_a_backend() -> None:
    done = (await run(Echo(), claim("to be or not")))["j"]
    assert done.tokens == ("to ", "be ", "or ", "not ")
    assert isinstance(done.end, Done)
    assert done.end.finish_reason == "stop"
    assert (done.end.usage.prompt_tokens, done.end.usage.completion_tokens) == (4, 4)
    assert done.attempt == 3


async def test_a_call_has_an_id_in_the_log_and_ends_with_tool_calls() -> None:
    class Calling(Backend):
        async def stream(self, job: Job) -> AsyncIterator[RichToken]:
            yield RichToken(tool_calls=(ToolCall(0, "", "f", "{"), ToolCall(1, "own", "g", "{}")))
            yield RichToken(tool_calls=(ToolCall(0, arguments="}"),))

    done = (await run(Calling(), claim("p")))["j"]
    assert join(done.tokens).tool_calls == (ToolCall(0, call_id_of("j", 0), "f", "{}"), ToolCall(1, "own", "g", "{}"))
    assert done.tokens[1] == RichToken(tool_calls=(ToolCall(0, arguments="}"),))
    assert isinstance(done.end, Done)
    assert done.end.finish_reason == "tool_calls"


async def test_max_tokens_closes_the_stream_and_the_last_token_carries_the_end() -> None:
    closed = []

    class Endless(Backend):
        async def stream(self, job: Job) -> AsyncIterator[str]:
            try:
                while True:
                    yield "x"
            finally:
                closed.append(job.id)

    events = await events_of(Endless(), claim("p", max_tokens=3))
    assert [event.seq for event in events] == [0, 1, 2]
    assert isinstance(events[-1], Done)
    assert (events[-1].tokens, events[-1].finish_reason) == (("x",), "length")
    assert closed == ["j"]


async def test_stop_strings_are_honoured_for_every_stream() -> None:
    done = (await run(Echo(), claim("one two three", stop=("o th",))))["j"]
    assert done.text == "one tw"
    assert isinstance(done.end, Done)
    assert done.end.finish_reason == "stop"
    assert done.end.usage.completion_tokens == 2


async def test_empty_tokens_are_dropped() -> None:
    class Stutter(Backend):
        async def stream(self, job: Job) -> AsyncIterator[str]:
            for token in ("", "a", "", "b"):
                yield token

    assert (await run(Stutter(), claim("p", max_tokens=2)))["j"].tokens == ("a", "b")


async def test_an_exception_fails_its_own_job_with_a_message_that_gives_nothing_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Picky(Backend):
        async def stream(self, job: Job) -> AsyncIterator[str]:
            yield "first "
            if "busy" in job.text:
                raise Overloaded("upstream is busy", retry_after_s=3)
            if "bad" in job.text:
                raise ValueError(f"cannot run {job.text}")
            yield "second"

    with caplog.at_level(logging.INFO):
        done = await run(Picky(), claim("bad SECRET", "a"), claim("busy", "b"), claim("fine", "c"))
    ends = {id: completion.end for id, completion in done.items()}
    assert isinstance(ends["a"], Failed)
    assert isinstance(ends["b"], Failed)
    assert isinstance(ends["c"], Done)
    assert (ends["a"].code, ends["b"].code) == ("backend_error", "overloaded")
    assert ends["b"].retry_after_s == 3
    assert "SECRET" not in ends["a"].message + caplog.text
    assert "ValueError" in ends["a"].message
    assert "ValueError" in caplog.text
    assert done["a"].tokens == ("first ",)


async def test_a_token_that_is_not_text_is_a_failure() -> None:
    class Bytes(Backend):
        async def stream(self, job: Job) -> AsyncIterator[str]:
            yield b"x"  # type: ignore[misc]

    end = (await run(Bytes(), claim("p")))["j"].end
    assert isinstance(end, Failed)
    assert end.code == "backend_error"


async def test_a_cancelled_job_is_stopped_at_its_await_and_nothing_more_is_owed() -> None:
    closed = []

    class Slow(Backend):
        async def stream(self, job: Job) -> AsyncIterator[str]:
            try:
                yield "a"
                await asyncio.Event().wait()
            finally:
                closed.append(job.id)

    one, two = claim("p", "a"), claim("p", "b", max_tokens=1)
    seen: list[Event] = []

    async def collect() -> None:
        async for event in Slow().generate(Batch((one, two))):
            seen.append(event)

    collecting = asyncio.create_task(collect())
    await wait_until(lambda: len(seen) == 2, "both jobs' first tokens")
    one.cancel("client")
    await collecting
    assert sorted(closed) == ["a", "b"]
    assert [type(event).__name__ for event in seen if event.job_id == "a"] == ["Tokens"]


async def test_closing_the_batch_closes_every_stream() -> None:
    closed = []

    class Slow(Backend):
        async def stream(self, job: Job) -> AsyncIterator[str]:
            try:
                while True:
                    yield "a"
                    await asyncio.sleep(0)
            finally:
                closed.append(job.id)

    events = Slow().generate(Batch((claim("p", "a"), claim("p", "b"))))
    await anext(events)
    await events.aclose()  # type: ignore[attr-defined]
    assert sorted(closed) == ["a", "b"]


async def test_a_consumer_that_pauses_holds_the_streams_back() -> None:
    num = 0

    class Fast(Backend):
        async def stream(self, job: Job) -> AsyncIterator[str]:
            nonlocal num
            for _ in range(10_000):
                num += 1
                yield "x"

    events = Fast().generate(Batch(tuple(claim("p", str(i), max_tokens=10_000) for i in range(4))))
    await anext(events)
    for _ in range(50):
        await asyncio.sleep(0)
    assert num < 2_000
    await events.aclose()  # type: ignore[attr-defined]


async def test_only_a_backend_that_resumes_continues_an_answer_that_has_begun() -> None:
    class Resuming(Backend):
        capabilities = Capabilities(resumes=True)

        async def stream(self, job: Job, tokens: tuple[str, ...]) -> AsyncIterator[str]:
            for word in job.text.split()[len(tokens) :]:
                yield word

    done = await events_of(Resuming(), claim("a b c", tokens=("a", "b")))
    assert [event.seq for event in done] == [2, 3]
    lost = await events_of(Echo(), claim("a b c", tokens=("a ", "b ")))
    assert isinstance(lost[0], Failed)
    assert (lost[0].code, lost[0].seq, len(lost)) == ("worker_lost", 2, 1)
    ended = await events_of(Echo(), claim("a b c", tokens=("a ", "b "), max_tokens=2))
    assert isinstance(ended[0], Done), "every token was delivered, only the end was not"
    assert (ended[0].finish_reason, ended[0].usage.completion_tokens) == ("length", 2)


class TestClass:
    def test_it_must_override_one_of_the_two(self) -> None:
        with pytest.raises(TypeError, match=r"generate\(batch\) or stream\(job\)"):
            type("Nothing", (Backend,), {})

    def test_a_coroutine_is_no_generator(self) -> None:
        async def stream(self: Backend, job: Job) -> str:
            return "x"

        with pytest.raises(TypeError, match="yield"):
            type("Whole", (Backend,), {"stream": stream})

    @pytest.mark.parametrize(
        ("old", "new"), [("ends_itself", "handles_stop"), ("keeps_time", "has_own_timeouts")], ids=["stop", "time"]
    )
    def test_an_old_name_is_an_error_that_names_the_new_one(self, old: str, new: str) -> None:
        with pytest.raises(TypeError, match=f"Old: {old} is now called {new}"):
            type("Old", (Backend,), {"stream": Echo.stream, old: True})
        mixed = type("Mixed", (), {old: False})
        with pytest.raises(TypeError, match=new):
            type("Old", (mixed, Backend), {"stream": Echo.stream})
        with pytest.raises(TypeError, match=f"Echo: {old} is now called {new}"):
            setattr(Echo(), old, True)
        with pytest.raises(TypeError, match=new):
            getattr(Echo(), old)

    def test_it_accepts_no_misspelt_field(self) -> None:
        with pytest.raises(TypeError, match="temprature"):
            type("Odd", (Backend,), {"stream": Echo.stream, "capabilities": Capabilities(accepts=("temprature",))})

    def test_streams_always_honour_stop_and_are_continuous_unless_they_say_otherwise(self) -> None:
        class Seeded(Echo):
            capabilities = Capabilities(accepts=("seed",))

        assert Echo.capabilities == Capabilities(accepts=("stop",), continuous=True)
        assert Seeded.capabilities == Capabilities(accepts=("seed", "stop"))
