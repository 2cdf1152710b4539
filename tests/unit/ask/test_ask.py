"""`penstock ask`: one answer, a file of them, and what happens when the server or the user interrupts."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.ask import Asker, AskOutcome, ask_file
from penstock.ask.file import PromptFile
from penstock.errors import BackendError, ConfigError, QueueFull, Unavailable
from penstock.sse import frame
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]


def answer_bytes(prompt: str) -> bytes:
    words = [f"{word} " for word in prompt.upper().split()]
    frames = [
        frame("token", json.dumps({"request_id": "r", "index": i, "text": word}).encode(), f"r/1-{i + 1}")
        for i, word in enumerate(words)
    ]
    end = {
        "request_id": "r",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)},
        "timings": {"queue_ms": 1.0, "ttft_ms": 2.0, "total_ms": 3.0},
    }
    return b"".join([*frames, b": keep-alive\n\n", frame("done", json.dumps(end).encode())])


class Server:
    """Answers with the prompt's words in capitals. `script` may answer instead: a response, or None to go on."""

    def __init__(self, script: Callable[[int, dict[str, Any]], httpx2.Response | None] = lambda n, body: None) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx2.Headers] = []
        self.most_at_once = self.at_once = self.num_resumed = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return await self.resume(request)
        assert request.url.path == "/v1/generate"
        body = json.loads(request.content)
        self.bodies.append(body)
        self.headers.append(request.headers)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        scripted = self.script(len(self.bodies), body)
        return scripted or httpx2.Response(200, content=bits(answer_bytes(body.get("prompt", "messages"))))

    async def resume(self, request: httpx2.Request) -> httpx2.Response:
        """What a stream is taken up with: the rest of the newest answer."""
        assert request.url.path == "/v1/requests/r/events"
        self.num_resumed += 1
        whole = answer_bytes(self.bodies[-1].get("prompt", "messages"))
        last_id = request.headers["last-event-id"].encode()
        return httpx2.Response(200, content=bits(whole[whole.index(b"id: " + last_id + b"\n") :].partition(b"\n\n")[2]))

    def asker(self, **options: Any) -> Asker:
        return Asker("http://penstock/", "key", transport=httpx2.MockTransport(self), **options)

    @property
    def asked(self) -> Counter[str]:
        return Counter(body["prompt"] for body in self.bodies)


async def bits(data: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def refuse(status: int, code: str, retry_after: str | None = "0") -> httpx2.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx2.Response(
        status, json={"error": {"message": "no", "code": code, "type": "t", "param": None}}, headers=headers
    )


def prompts(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_one_answer_is_streamed_and_folded() -> None:
    server, seen = Server(), list[str]()
    async with server.asker() as asker:
        outcome = await asker.ask({"prompt": "a bee sea", "max_tokens": 3}, seen.append)
    assert seen == ["A ", "BEE ", "SEA "]
    assert (outcome.text, outcome.error) == ("A BEE SEA ", None)
    assert outcome.answer is not None
    assert outcome.answer.finish_reason == "stop"
    assert outcome.usage.completion_tokens == 3
    assert server.bodies == [{"prompt": "a bee sea", "max_tokens": 3, "stream": True}]
    assert server.headers[0]["authorization"] == "Bearer key"


async def test_a_temporary_error_is_retried() -> None:
    refusals = [
        refuse(429, "queue_full"),
        refuse(503, "no_workers"),
        httpx2.Response(429, text="a proxy", headers={"retry-after": "0"}),
    ]
    server = Server(lambda n, body: refusals[n - 1] if n <= 3 else None)
    async with server.asker(max_retries=3) as asker:
        assert (await asker.ask({"prompt": "x"})).text == "X "
    assert len(server.bodies) == 4


async def test_tries_are_bounded_and_errors_keep_their_class() -> None:
    server = Server(lambda n, body: refuse(429, "queue_full"))
    async with server.asker(max_retries=2) as asker:
        outcome = await asker.ask({"prompt": "x"})
    assert isinstance(outcome.error, QueueFull)
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "refusal", [refuse(400, "invalid_request"), refuse(504, "deadline_exceeded"), refuse(429, "rate_limited", "3600")]
)
async def test_a_permanent_error_is_not_retried(refusal: httpx2.Response) -> None:
    server = Server(lambda n, body: refusal)
    async with server.asker(max_retries=4) as asker:
        assert (await asker.ask({"prompt": "x"})).error is not None
    assert len(server.bodies) == 1


async def test_a_broken_stream_continues_after_its_last_token() -> None:
    whole = answer_bytes("a b")
    cut = whole[: whole.index(b"event: done")]
    server, seen = Server(lambda n, body: httpx2.Response(200, content=bits(cut))), list[str]()
    async with server.asker(max_retries=1) as asker:
        outcome = await asker.ask({"prompt": "a b"}, seen.append)
    assert outcome.error is None
    assert seen == ["A ", "B "]
    assert (len(server.bodies), server.num_resumed) == (1, 1)


async def test_an_error_event_is_the_error_it_names() -> None:
    data = json.dumps(BackendError("it broke").envelope()).encode()
    server = Server(lambda n, body: httpx2.Response(200, content=bits(frame("error", data))))
    async with server.asker(max_retries=1) as asker:
        outcome = await asker.ask({"prompt": "x"})
    assert isinstance(outcome.error, BackendError)
    assert outcome.error.message == "it broke"


async def test_a_server_that_is_not_there_is_named() -> None:
    async with Asker("http://127.0.0.1:1", max_retries=1) as asker:
        outcome = await asker.ask({"prompt": "x"})
    assert isinstance(outcome.error, Unavailable)
    assert "http://127.0.0.1:1" in outcome.error.message


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[::1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        Asker(url)


async def run_file(server: Server, path: Path, out: Path, **options: Any) -> tuple[int, int, int]:
    async with server.asker(max_retries=1) as asker:
        given: dict[str, Any] = {"concurrency": 4, "defaults": {}} | options
        summary = await ask_file(asker, path, out, **given)
    return summary.num_before, summary.num_answered, summary.num_failed


async def test_a_file_is_answered_side_by_side_and_not_twice(tmp_path: Path) -> None:
    server, out = Server(), tmp_path / "out.jsonl"
    path = prompts(
        tmp_path, *({"id": i, "prompt": f"p {i}"} for i in range(20)), {"messages": [{"role": "user", "content": "x"}]}
    )
    assert await run_file(server, path, out, defaults={"seed": 1}) == (0, 21, 0)
    assert server.most_at_once == 4
    found = {line["id"]: line for line in answers(out)}
    assert found["7"]["text"] == "P 7 "
    assert (found["7"]["finish_reason"], found["7"]["usage"]["completion_tokens"]) == ("stop", 2)
    assert all(body["seed"] == 1 and "id" not in body for body in server.bodies)
    assert await run_file(server, path, out, defaults={"seed": 1}) == (21, 0, 0)
    assert len(server.bodies) == 21
    assert await run_file(server, path, out, defaults={"seed": 2}) == (0, 21, 0)  # another question


async def test_a_stopped_run_continues_after_its_last_answer(tmp_path: Path) -> None:
    server, out = Server(), tmp_path / "out.jsonl"
    path = prompts(tmp_path, *({"prompt": f"p{i}"} for i in range(30)))
    num_done = 0

    def on_outcome(prompt: object, outcome: AskOutcome) -> None:
        nonlocal num_done
        num_done += 1
        if num_done == 10:
            server.gate.clear()  # what is asked from here on hangs

    first = asyncio.create_task(run_file(server, path, out, on_outcome=on_outcome))
    await wait_until(lambda: num_done >= 10 and server.at_once == 4, "ten answers and four questions in flight")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    done = {line["text"] for line in answers(out)}
    assert len(done) == num_done
    server.gate.set()
    asked_before = server.asked
    assert await run_file(server, path, out) == (num_done, 30 - num_done, 0)
    assert sorted(line["text"] for line in answers(out)) == sorted(f"P{i} " for i in range(30))
    again = [prompt for prompt, count in server.asked.items() if count > 1]
    assert not {f"{prompt.upper()} " for prompt in again} & done
    assert sum(server.asked.values()) == sum(asked_before.values()) + 30 - num_done


async def test_failed_prompts_are_reported_and_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    path = prompts(tmp_path, {"prompt": "good"}, {"prompt": "bad"})
    sick = Server(lambda n, body: refuse(502, "backend_error") if body["prompt"] == "bad" else None)
    assert await run_file(sick, path, out) == (0, 1, 1)
    failed = next(line for line in answers(out) if "error" in line)
    assert failed["error"]["code"] == "backend_error"
    assert await run_file(Server(), path, out) == (1, 1, 0)
    assert sorted(line["text"] for line in answers(out)) == ["BAD ", "GOOD "]
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


async def test_a_line_cut_off_by_a_crash_is_asked_again(tmp_path: Path) -> None:
    server, out = Server(), tmp_path / "out.jsonl"
    path = prompts(tmp_path, {"prompt": "a"}, {"prompt": "b"})
    await run_file(server, path, out)
    out.write_bytes(out.read_bytes()[:-5])
    assert await run_file(server, path, out) == (1, 1, 0)
    assert sorted(line["text"] for line in answers(out)) == ["A ", "B "]


async def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    server, out = Server(), tmp_path / "out.jsonl"
    path = prompts(tmp_path, {"prompt": "a"})
    server.gate.clear()
    first = asyncio.create_task(run_file(server, path, out))
    await wait_until(lambda: server.at_once == 1, "the first run asks")
    with pytest.raises(ConfigError, match="another run"):
        await run_file(server, path, out)
    server.gate.set()
    assert await first == (0, 1, 0)


async def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("dear diary\n")
    with pytest.raises(ConfigError, match="line 1 is not an answer record"):
        await run_file(Server(), prompts(tmp_path, {"prompt": "a"}), out)
    assert out.read_text() == "dear diary\n"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["nonsense"], "line 1: each line must be a JSON object .* this one is not JSON"),
        (['{"prompt": "a"}', "", "[]"], "line 3: each line must be a JSON object"),
        ([{"prompt": "a", "messages": []}], "either"),
        ([{}], "either"),
        ([{"messages": "a"}], "line 1: 'messages' must be a list"),
        ([{"prompt": "a"}, {"prompt": None}], "line 2: 'prompt' must be text"),
        ([{"prompt": ["a"]}], "line 1: 'prompt' must be text"),
        ([{"prompt": "a", "max_token": 1}], "unknown field max_token"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}], "line 2: the id '1' is there twice"),
        ([{"prompt": "a", "id": [1]}], "an id is text"),
    ],
)
async def test_a_bad_line_is_named_before_anything_is_asked(tmp_path: Path, lines: list[object], words: str) -> None:
    server = Server()
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match=words):
        await run_file(server, prompts(tmp_path, *lines), out)
    assert server.bodies == []
    assert not out.exists(), "no empty file of answers is left behind"


async def test_a_byte_order_mark_is_not_part_of_the_first_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n')
    server = Server()
    assert await run_file(server, path, tmp_path / "out.jsonl") == (0, 1, 0)
    assert server.bodies[0]["prompt"] == "a"


async def test_prompts_may_come_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = io.BytesIO(b'{"prompt": "a"}\n{"prompt": "b"}\n')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given, encoding="utf-8"))
    server = Server()
    assert await run_file(server, Path("-"), tmp_path / "out.jsonl") == (0, 2, 0)
    assert sorted(body["prompt"] for body in server.bodies) == ["a", "b"]


async def test_tokens_are_counted_while_answers_run(tmp_path: Path) -> None:
    texts: list[str] = []
    await run_file(Server(), prompts(tmp_path, {"prompt": "a b"}), tmp_path / "out.jsonl", on_text=texts.append)
    assert texts == ["A ", "B "]


async def test_a_line_may_set_every_option_and_an_answers_calls_are_in_its_line(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    events = [
        frame("token", json.dumps({"request_id": "r", "index": 0, "text": "", "tool_calls": [{"name": "f"}]}).encode()),
        frame("done", json.dumps({"request_id": "r", "finish_reason": "tool_calls"}).encode()),
    ]
    server = Server(lambda n, body: httpx2.Response(200, content=b"".join(events)) if "tools" in body else None)
    asked = {"prompt": "a", "tools": [tool], "top_k": 4, "metadata": {"a": "b"}}
    out = tmp_path / "out.jsonl"
    await run_file(server, prompts(tmp_path, asked, {"prompt": "plain"}), out)
    assert {name: server.bodies[0][name] for name in asked} == asked
    called, plain = sorted(answers(out), key=lambda line: "tool_calls" not in line)
    assert called["tool_calls"] == [{"id": "call_r_0", "name": "f"}]
    assert not {"tool_calls", "reasoning", "logprobs"} & set(plain)


async def test_the_same_prompt_twice_is_two_questions(tmp_path: Path) -> None:
    path = prompts(tmp_path, {"prompt": "a"}, {"prompt": "a"}, {"prompt": "a"})
    ids = [prompt.id for prompt in PromptFile(path, {})]
    assert len(set(ids)) == 3
    assert ids == [prompt.id for prompt in PromptFile(path, {})]
    assert await run_file(Server(), path, tmp_path / "out.jsonl") == (0, 3, 0)
    assert await run_file(Server(), path, tmp_path / "out.jsonl") == (3, 0, 0)


def test_the_example_holds_a_hundred_questions() -> None:
    found = list(PromptFile(ROOT / "examples" / "prompts.jsonl", {}))
    assert [prompt.id for prompt in found] == [f"q{i:03}" for i in range(1, 101)]
    assert len({prompt.body["prompt"] for prompt in found}) == 100
