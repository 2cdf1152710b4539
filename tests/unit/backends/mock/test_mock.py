"""The mock engine: its text depends on the prompt alone, and its steps are due on absolute deadlines."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from penstock.backends.mock.engine import MockBackend
from penstock.backends.mock.text import token_source, verify_chain
from penstock.event import Completion, Done, Event, Failed, Tokens, fold
from penstock.job import Batch, Claim, Job, Message, Sampling
from tests.support.waiting import wait_until


def job(id: str = "j", prompt: str = "Tell me.", **sampling: object) -> Job:
    return Job(id=id, model="mock", prompt=prompt, sampling=Sampling(**{"max_tokens": 6, **sampling}))  # type: ignore[arg-type]


def claim(one: Job, tokens: tuple[str, ...] = ()) -> Claim:
    return Claim(one, attempt=7, deadline_at=time.monotonic() + 60, tokens=tokens)


async def answer(backend: MockBackend, *claims: Claim) -> dict[str, Completion]:
    events: dict[str, list[Event]] = {c.job.id: [] for c in claims}
    async for event in backend.generate(Batch(claims)):
        events[event.job_id].append(event)
    return {id: fold(seen) for id, seen in events.items()}


def text_of(one: Job, num: int = 6) -> list[str]:
    token_of = token_source(one)
    return [token_of(i) for i in range(num)]


async def test_the_same_prompt_gives_the_same_text_whatever_the_id_and_the_batch() -> None:
    backend = MockBackend()
    alone = await answer(backend, claim(job("a")))
    beside = await answer(backend, claim(job("b")), claim(job("c", "Something else.")))
    assert alone["a"].tokens == beside["b"].tokens == tuple(backend.expected(job()))
    assert beside["c"].tokens != beside["b"].tokens
    end = alone["a"].end
    assert isinstance(end, Done)
    assert end.finish_reason == "length"
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (2, 6)
    assert end.tokens == alone["a"].tokens[-1:], "the last token and the end travel together"


def test_seed_temperature_and_top_p_change_the_text_and_seed_0_is_the_default() -> None:
    plain = text_of(job())
    assert text_of(job(seed=0)) == plain
    texts = [text_of(job(seed=1)), text_of(job(temperature=0.5)), text_of(job(top_p=0.5)), plain]
    assert len({tuple(text) for text in texts}) == 4


def test_messages_are_a_prompt_too() -> None:
    chat = Job(id="x", model="mock", messages=(Message("user", "Hi"),), sampling=Sampling(max_tokens=4))
    assert text_of(chat) != text_of(job(prompt="Hi"))
    assert text_of(chat)[0][0].isupper()
    assert all(token.startswith(" ") for token in text_of(chat)[1:])


async def test_it_continues_exactly_where_an_earlier_attempt_stopped() -> None:
    backend = MockBackend(chain=True)
    whole = backend.expected(job())
    for num in range(7):
        events = [event async for event in backend.generate(Batch((claim(job(), tuple(whole[:num])),)))]
        assert events[0].seq == num
        carried = [token for event in events for token in event.tokens]  # type: ignore[union-attr]
        assert whole[:num] + carried == whole
        assert isinstance(events[-1], Done)
        assert events[-1].usage.completion_tokens == 6


async def test_stop_strings_cut_and_are_never_sent() -> None:
    backend = MockBackend()
    whole = "".join(text_of(job(), 6))
    third = text_of(job())[2]
    stop = third[1:] + text_of(job())[3][:2]  # over the end of a token
    done = (await answer(backend, claim(job(stop=(stop,)))))["j"]
    assert done.text == whole[: whole.index(stop)]
    assert isinstance(done.end, Done)
    assert done.end.finish_reason == "stop"


def test_a_chain_shows_every_kind_of_break() -> None:
    backend = MockBackend(chain=True)
    whole = backend.expected(job(), 8)
    other = backend.expected(job(prompt="another"), 8)
    assert verify_chain(whole) is None
    assert verify_chain(whole[:3]) is None
    assert verify_chain([]) is None
    assert "place 2" in str(verify_chain(whole[:2] + whole[3:])), "lost"
    assert "place 3" in str(verify_chain(whole[:3] + whole[2:])), "repeated"
    assert "token 4 follows" in str(verify_chain(whole[:4] + other[4:])), "spliced"
    assert "not a chained token" in str(verify_chain(["word"]))


async def test_a_cancelled_job_leaves_at_the_next_step_and_its_neighbour_stays() -> None:
    backend = MockBackend()
    one, two = claim(job("a", max_tokens=1000)), claim(job("b", max_tokens=20))
    late = 0
    async for event in backend.generate(Batch((one, two))):
        late += event.job_id == "a" and one.cancelled is not None
        if event.seq == 5:
            one.cancel("client")
    assert late == 0


async def test_steps_are_due_on_absolute_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    async def oversleep(delay: float) -> None:
        nonlocal now
        now += delay + 0.002  # a sleep is always a little late: it must not add up

    monkeypatch.setattr("penstock.backends.mock.engine.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("penstock.backends.mock.engine.asyncio", SimpleNamespace(sleep=oversleep))
    backend = MockBackend(step_ms=5, step_ms_per_seq=1, prefill_ms_per_token=10)
    batch = Batch((claim(job("a", "one two", max_tokens=20)),))
    arrivals = [now async for _ in backend.generate(batch)]
    assert arrivals == pytest.approx([100.0 + 0.020 + 0.006 * (k + 1) + 0.002 for k in range(20)])


async def test_without_a_step_time_it_yields_to_the_loop_at_every_step() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await answer(MockBackend(), claim(job(max_tokens=50)))
    counting.cancel()
    assert turns >= 49


async def test_all_events_of_a_step_come_without_a_pause() -> None:
    turns, seen = 0, list[tuple[int, int]]()

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    async for event in MockBackend().generate(Batch(tuple(claim(job(str(i))) for i in range(4)))):
        seen.append((event.seq, turns))
    counting.cancel()
    assert all(len({turn for seq, turn in seen if seq == k}) == 1 for k in range(6))


class TestScripts:
    async def test_one_fails_the_others_do_not(self) -> None:
        backend = MockBackend(scripted=True)
        done = await answer(
            backend,
            claim(job("now", "[[fail]]")),
            claim(job("later", "[[fail_after=3]]")),
            claim(job("fine", "plain")),
        )
        now, later, fine = done["now"], done["later"], done["fine"]
        assert isinstance(now.end, Failed)
        assert isinstance(later.end, Failed)
        assert isinstance(fine.end, Done)
        assert (len(now.tokens), len(later.tokens), len(fine.tokens)) == (0, 3, 6)
        assert now.end.code == "backend_error"

    async def test_a_hang_stops_the_whole_batch(self) -> None:
        seen: list[Event] = []

        async def collect() -> None:
            batch = Batch((claim(job("a", "[[hang_after=2]]")), claim(job("b"))))
            async for event in MockBackend(scripted=True).generate(batch):
                seen.append(event)

        collecting = asyncio.create_task(collect())
        await wait_until(lambda: len(seen) == 4, "two steps of two jobs")
        for _ in range(20):
            await asyncio.sleep(0)
        collecting.cancel()
        assert [type(event) for event in seen] == [Tokens] * 4

    async def test_a_plain_mock_takes_triggers_as_text(self) -> None:
        done = await answer(MockBackend(), claim(job(prompt="[[fail]]")))
        assert isinstance(done["j"].end, Done)


def test_times_are_never_negative() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        MockBackend(step_ms=-1)


async def test_one_that_does_not_resume_fails_what_an_earlier_attempt_has_begun() -> None:
    backend = MockBackend(resumes=False)
    assert not backend.capabilities.resumes
    begun, fresh = claim(job("begun"), ("a",)), claim(job("fresh"))
    events = [event async for event in backend.generate(Batch((begun, fresh)))]
    assert isinstance(events[0], Failed)
    assert (events[0].job_id, events[0].code, events[0].seq) == ("begun", "worker_lost", 1)
    assert len(fold(events[1:]).tokens) == 6
