"""One suite over every backend. A backend of your own passes it too: add it to `BACKENDS`.

Each entry builds a backend whose answers to a prompt of many words have at least four tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.backends import Backend, build_backend
from penstock.backends.base import OPTIONAL_FIELDS
from penstock.backends.mock.tasks import id_of
from penstock.event import Completion, Done, Event, Failed, Tokens, fold
from penstock.extras import problem_of
from penstock.job import Batch, Claim, Job, Message, Sampling
from penstock.rich_token import Token
from penstock.tasks import TASKS, read_count, read_info, read_scores, read_tokenized
from penstock.wire import decode_event, encode_event
from tests.support.upstream import Upstream

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPT = "one two three four five six seven eight nine ten"

BACKENDS: dict[str, Callable[[], Backend]] = {
    "mock": lambda: build_backend("mock", {}),
    "mock-paced": lambda: build_backend("mock", {"step_ms": "1", "chain": "true"}),
    "echo": lambda: build_backend(f"{EXAMPLES}/echo_backend.py:Echo", {}),
    "echo-paced": lambda: build_backend(f"{EXAMPLES}/echo_backend.py:Echo", {"pause_ms": "1"}),
}

# In front of a server of the tests' own: its mood, and the backend's options.
UPSTREAMS: dict[str, tuple[str, dict[str, str]]] = {
    "openai": ("ok", {}),
    "openai-resumes": ("ok", {"engine": "vllm", "resumes": "prompt+messages"}),
    "openai-chat": ("no_done", {"engine": "vllm", "api": "chat", "resumes": "messages"}),
    "openai-bytewise": ("bytewise", {"engine": "llamacpp"}),
    "openai-scores": ("ok", {"engine": "vllm", "task": "generate+embed+score"}),
    "openai-reranks": ("ok", {"engine": "sglang", "task": "generate+score"}),
    "openai-tgi": ("ok", {"engine": "tgi"}),
}


@pytest.fixture(params=[*BACKENDS, *UPSTREAMS])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param in BACKENDS:
            made = BACKENDS[request.param]()
        else:
            mood, options = UPSTREAMS[request.param]
            upstream = await stack.enter_async_context(Upstream(mood))
            made = build_backend("openai", {"url": upstream.url, **options})
        await made.start()
        yield made
        await made.close()


def claim(id: str = "j", tokens: tuple[Token, ...] = (), prompt: str = PROMPT, **sampling: object) -> Claim:
    sampling = {"max_tokens": 5, **sampling}
    job = Job(id=id, model="m", prompt=prompt, sampling=Sampling(**sampling))  # type: ignore[arg-type]
    return Claim(job, attempt=1234567890123, deadline_at=time.monotonic() + 60, tokens=tokens)


async def run(backend: Backend, *claims: Claim) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {c.job.id: [] for c in claims}
    async for event in backend.generate(Batch(claims)):
        events[event.job_id].append(event)
    return events


def whole(events: list[Event], one: Claim) -> Completion:
    """Check what is owed for one claim, and fold it."""
    seq = len(one.tokens)
    for event in events:
        assert isinstance(event, Tokens | Done | Failed)
        assert event.attempt == one.attempt
        assert event.seq == seq, "no gap and no overlap"
        assert all(event.tokens), "no empty token"
        assert decode_event(encode_event(event)) == event
        seq += len(event.tokens)
    assert [isinstance(event, Done | Failed) for event in events] == [False] * (len(events) - 1) + [True]
    return fold(events, Completion(one.tokens))


async def test_every_job_of_a_batch_gets_its_tokens_and_one_end(backend: Backend) -> None:
    claims = [claim(str(i), max_tokens=4, prompt=f"{PROMPT} {i}") for i in range(8)]
    for one, events in zip(claims, (await run(backend, *claims)).values(), strict=True):
        done = whole(events, one)
        assert isinstance(done.end, Done)
        assert done.end.finish_reason == "length"
        assert len(done.tokens) == 4
        assert done.end.usage.completion_tokens == 4
        assert done.end.usage.prompt_tokens > 0


# What a job of each task has, and a check of its tokens.
TASK_JOBS: dict[str, tuple[dict[str, Any], Callable[[tuple[Token, ...]], bool]]] = {
    "count": ({"messages": (Message("user", PROMPT),)}, lambda tokens: read_count(tokens) >= 10),
    "tokenize": ({"prompt": PROMPT}, lambda tokens: read_tokenized(tokens).count == 10),
    "detokenize": ({"inputs": (tuple(map(id_of, PROMPT.split())),)}, lambda tokens: tokens == (PROMPT,)),
    "score": ({"queries": ("one",), "inputs": ("one", "two")}, lambda tokens: len(read_scores(tokens, 2)) == 2),
    "tokenizer_info": ({}, lambda tokens: "tokenizer_class" in read_info(tokens)),
}


@pytest.mark.parametrize("task", TASKS)
async def test_a_task_gives_its_result_or_is_clearly_refused(backend: Backend, task: str) -> None:
    fields, is_result = TASK_JOBS[task]
    one = Claim(Job(id="j", model="m", task=task, **fields), 1234567890123, time.monotonic() + 60)
    done = whole((await run(backend, one))["j"], one)
    if task not in backend.capabilities.tasks:  # the worker asks no such backend; one that is asked all the same fails
        assert isinstance(done.end, Failed)
        return
    assert isinstance(done.end, Done)
    assert (done.end.finish_reason, done.end.usage.completion_tokens) == ("stop", 0)
    assert is_result(done.tokens)
    again = Claim(one.job, one.attempt, one.deadline_at, done.tokens)  # it lacks only its end
    assert whole((await run(backend, again))["j"], again).tokens == done.tokens


async def test_a_text_is_counted_as_it_is_tokenized(backend: Backend) -> None:
    if not {"count", "tokenize"} <= set(backend.capabilities.tasks):
        pytest.skip("it does not do both")
    found = []
    for task in ("count", "tokenize"):
        one = Claim(Job(id="j", model="m", task=task, prompt=PROMPT), 1234567890123, time.monotonic() + 60)
        found.append(whole((await run(backend, one))["j"], one).tokens)
    assert read_count(found[0]) == read_tokenized(found[1]).count


async def test_a_prompt_of_token_ids_is_answered_where_they_are_accepted(backend: Backend) -> None:
    if "token_ids" not in backend.capabilities.accepts:
        pytest.skip("it does not accept token ids, so the gateway refuses them")
    job = Job(id="j", model="m", prompt=(5, 67, 8), sampling=Sampling(max_tokens=3))
    one = Claim(job, 1234567890123, time.monotonic() + 60)
    done = whole((await run(backend, one))["j"], one)
    if isinstance(done.end, Failed):  # an API of conversations only
        assert (done.end.code, done.end.param) == ("unsupported_parameter", "prompt")
    else:
        assert len(done.tokens) == 3


async def test_one_token_is_an_answer(backend: Backend) -> None:
    one = claim(max_tokens=1)
    done = whole((await run(backend, one))["j"], one)
    assert len(done.tokens) == 1


async def test_batches_run_side_by_side_and_do_not_mix(backend: Backend) -> None:
    claims = [claim(str(i), prompt=f"{PROMPT} {i}") for i in range(4)]
    apart = [whole((await run(backend, one))[one.job.id], one).text for one in claims]
    together = await asyncio.gather(*(run(backend, one) for one in claims))
    assert [whole(seen[one.job.id], one).text for one, seen in zip(claims, together, strict=True)] == apart


async def test_stop_strings_end_an_answer_if_they_are_accepted(backend: Backend) -> None:
    assert {problem_of(name, OPTIONAL_FIELDS) for name in backend.capabilities.accepts} <= {None}
    if "stop" not in backend.capabilities.accepts:
        pytest.skip("it does not accept stop strings, so the gateway refuses them")
    one = claim(max_tokens=4)
    text = whole((await run(backend, one))["j"], one).text
    stop = text[len(text) // 2 :][:3]
    cut = claim(max_tokens=4, stop=(stop,))
    done = whole((await run(backend, cut))["j"], cut)
    assert isinstance(done.end, Done)
    assert (done.end.finish_reason, done.text) == ("stop", text[: text.index(stop)])


async def test_an_answer_that_has_begun_is_continued_or_clearly_refused(backend: Backend) -> None:
    first = claim(max_tokens=4)
    tokens = whole((await run(backend, first))["j"], first).tokens
    again = claim(max_tokens=4, tokens=tokens[:2])
    done = whole((await run(backend, again))["j"], again)
    assert backend.can_continue(again) is backend.capabilities.resumes
    if backend.capabilities.resumes:
        assert len(done.tokens) == 4
        assert isinstance(done.end, Done)
    else:
        assert isinstance(done.end, Failed)
        assert done.end.code == "worker_lost"


async def test_an_answer_that_lacks_only_its_end_gets_it(backend: Backend) -> None:
    one = claim(max_tokens=2, tokens=("a", "b"))
    done = whole((await run(backend, one))["j"], one)
    assert isinstance(done.end, Done)
    assert (done.tokens, done.end.finish_reason) == (("a", "b"), "length")


async def test_a_cancelled_job_stops_and_its_neighbours_do_not(backend: Backend) -> None:
    leaver, stayer = claim("leaver", max_tokens=10_000, prompt=PROMPT * 2000), claim("stayer")
    events: dict[str, list[Event]] = {"leaver": [], "stayer": []}
    after = 0
    async for event in backend.generate(Batch((leaver, stayer))):
        events[event.job_id].append(event)
        after += event.job_id == "leaver" and leaver.cancelled is not None
        if event.job_id == "leaver":
            leaver.cancel("client")
    whole(events["stayer"], stayer)
    assert after < 1000, "soon, not at its end"


async def test_a_job_that_is_cancelled_before_it_begins_costs_nothing(backend: Backend) -> None:
    one = claim()
    one.cancel("client")
    events = (await run(backend, one))["j"]
    assert len(events) <= 1


async def test_closing_a_batch_in_its_middle_leaves_the_backend_usable(backend: Backend) -> None:
    events = backend.generate(Batch((claim("a", max_tokens=1000, prompt=PROMPT * 100), claim("b"))))
    await anext(events)
    await events.aclose()  # type: ignore[attr-defined]
    one = claim()
    assert isinstance(whole((await run(backend, one))["j"], one).end, Done)
