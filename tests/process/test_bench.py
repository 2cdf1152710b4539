"""`penstock bench` as users run it: on a real server, on servers that lie, and on none."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import reading
from tests.support.programs import Command, Site, site
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.timeout(60)

Handler = Callable[[dict[str, Any], int], Awaitable[list[bytes]]]


async def bench(url: str, *flags: str) -> tuple[int, dict[str, Any], str]:
    """Status, the JSON, and what was said on stderr."""
    done = await asyncio.to_thread(_start(url, *flags).done)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def _start(url: str, *flags: str) -> Command:
    return Command("bench", "--json", "--url", url, *flags)


@pytest.fixture
def served() -> Any:
    with site() as built:
        built.serve("--model", "mock=mock:step_ms=1")
        yield built


def _chunked(parts: list[bytes], kind: str = "text/event-stream") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@asynccontextmanager
async def fake(answer: Callable[[dict[str, Any], int], bytes]) -> AsyncIterator[str]:
    """A server that says what `answer` gives for a body and the number of the request; empty: it hangs up."""
    num = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[15:]) for line in head.splitlines() if line.startswith(b"content-length"))
                body = json.loads(await reader.readexactly(length))
                num += 1
                data = answer({**body, "path": head.split()[1].decode()}, num)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the load has ended
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_streams_of_a_real_server_all_right(served: Site, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    flags = ["--requests=60", "--concurrency=8", "--output-tokens=9", "--warmup=0.2", "--slo=ttft=5s,e2e=20s"]
    status, found, errors = await bench(served.gateways[0], *flags, "--processes=2", f"--html={page}")
    assert (status, found["ok"], found["failed"]) == (0, 60, 0), errors
    assert found["good_share"] == 1.0
    assert found["itl_ms"]["p50"] < found["ttft_ms"]["p50"] < found["e2e_ms"]["p50"]
    assert found["tpot_ms"]["p50"] >= 0.9, "the engine takes a millisecond a step"
    assert found["plan"]["processes"] == 2
    assert len(found["generator_cpu"]) == 2
    assert "<svg" in page.read_text(encoding="utf-8")


async def test_whole_answers_and_prompts_of_a_file(served: Site, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 3}\n{"prompt": "b", "max_tokens": 5}\n', encoding="utf-8")
    flags = ["--no-stream", "--requests=20", "--concurrency=4", "--warmup=0", f"--prompts={path}"]
    status, found, errors = await bench(served.gateways[0], *flags)
    assert (status, found["ok"], found["ttft_ms"]) == (0, 20, None), errors
    assert found["tokens_with_warmup"] == 10 * 3 + 10 * 5
    assert found["plan"]["max_tokens"] == [3, 5]


async def test_open_loop(served: Site) -> None:
    flags = ["--rate=40", "--duration=1.5", "--warmup=0.3", "--output-tokens=4"]
    status, found, errors = await bench(served.gateways[0], *flags)
    assert (status, found["failed"]) == (0, 0), errors
    assert 25 <= found["requests"] <= 100, "60 are expected, Poisson"
    assert found["lag_ms"]["p50"] < 100


async def test_refusals_are_counted_by_kind_and_are_not_wrong(served: Site) -> None:
    flags = ["--requests=3", "--concurrency=1", "--warmup=0", "--extra", '{"temperature": 99}']
    status, found, _ = await bench(served.gateways[0], *flags)
    assert (status, found["ok"], found["wrong"]) == (1, 0, 0)
    assert found["errors"] == {"HTTP 400 invalid_request": 3}


async def test_an_interrupt_ends_it_early_with_its_figures(served: Site) -> None:
    command = _start(served.gateways[0], "--duration=60", "--concurrency=2", "--output-tokens=4", "--warmup=0")

    async def has_begun() -> bool:
        async with reading.client() as http:
            page = (await http.get(f"{served.gateways[0]}/metrics")).text
        return reading.metric(page, "penstock_requests_total") > 20

    await wait_until_async(has_begun, "it asks", 60.0)
    command.process.send_signal(signal.SIGINT)
    done = await asyncio.to_thread(command.done)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert 0 < found["window_s"] < 60
    assert found["ok"] == found["requests"] > 0


def _event(index: int) -> bytes:
    return f'event: token\ndata: {{"index":{index},"text":"x"}}\n\n'.encode()


DONE = b'event: done\ndata: {"finish_reason":"length","usage":{"completion_tokens":4}}\n\n'


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        ([_event(0), _event(2), _event(1), _event(3), DONE], "wrong: order of tokens"),
        ([_event(0), _event(1), _event(2), _event(3)], "wrong: no end"),
        ([_event(0), _event(1), DONE], "wrong: number of tokens"),
    ],
)
async def test_a_server_that_lies_now_and_then_is_caught(parts: list[bytes], wrong: str) -> None:
    good = [_event(0), _event(1), _event(2), _event(3), DONE]
    async with fake(lambda body, num: _chunked(parts if num == 5 else good)) as url:
        flags = ["--requests=10", "--concurrency=2", "--warmup=0", "--output-tokens=4"]
        status, found, _ = await bench(url, *flags)
    assert (status, found["ok"], found["wrong"], found["errors"]) == (1, 9, 1, {wrong: 1})


async def test_hang_ups_are_errors_and_the_load_continues() -> None:
    good = _chunked([_event(0), _event(1), _event(2), _event(3), DONE])
    async with fake(lambda body, num: b"" if num in (2, 5) else good) as url:
        flags = ["--requests=10", "--concurrency=2", "--warmup=0", "--output-tokens=4"]
        status, found, _ = await bench(url, *flags)
    assert (status, found["ok"], found["errors"]) == (0, 8, {"connection closed": 2})
    assert found["reconnects"] >= 1, "after the second one at the latest; the other connection may take what is left"
    assert found["joined_share"] == 1.0, "the tokens of each answer came in one piece"
    assert found["itl_ms"]["max"] == 0


async def test_a_missing_answer_is_a_timeout() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with fake(lambda body, num: head) as url:
        flags = ["--requests=2", "--concurrency=2", "--warmup=0", "--timeout=0.5"]
        status, found, _ = await bench(url, *flags)
    assert (status, found["errors"]) == (1, {"timeout": 2})


async def test_a_closed_loop_begins_over_its_warm_up() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    spreads = []
    for ramp in ((), ("--ramp=0",)):
        at: list[float] = []

        def note(body: dict[str, Any], num: int, at: list[float] = at) -> bytes:
            at.append(time.monotonic())
            return head

        async with fake(note) as url:
            await bench(url, "--concurrency=5", "--warmup=0.5", "--duration=0.1", "--timeout=1", *ramp)
        assert len(at) == 5
        spreads.append(at[-1] - at[0])
    assert spreads[0] > 2 * spreads[1]
    assert spreads[0] > 0.2


async def test_all_connections_at_once(served: Site) -> None:
    status, found, _ = await bench(
        served.gateways[0], "--no-preconnect", "--concurrency=100", "--requests=100", "--warmup=0", "--output-tokens=4"
    )
    assert (status, found["ok"], found["failed"]) == (0, 100, 0)
    assert found["plan"]["preconnect"] is False
    status, _, errors = await bench(served.gateways[0], "--no-preconnect", "--rate=5")
    assert status == 2
    assert "--no-preconnect" in errors


@pytest.mark.parametrize("flags", [("--ramp=2", "--warmup=1"), ("--ramp=1", "--rate=5")])
async def test_a_ramp_that_means_nothing_is_refused(flags: tuple[str, ...]) -> None:
    status, _, errors = await bench("http://127.0.0.1:9", *flags)
    assert status == 2
    assert "--ramp" in errors


@pytest.mark.parametrize(("api", "path"), [("chat", "/v1/chat/completions"), ("completions", "/v1/completions")])
async def test_openai_streams(api: str, path: str) -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any], num: int) -> bytes:
        seen.append(body)
        choice = {"delta": {"content": "x"}} if api == "chat" else {"text": "x"}
        tokens = [{"choices": [{"index": 0, **choice, "finish_reason": None}]}] * 4
        last = {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}]}
        usage = {"choices": [], "usage": {"completion_tokens": 4}}
        lines = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in (*tokens, last, usage)]
        return _chunked([*lines, b"data: [DONE]\n\n"])

    async with fake(answer) as url:
        flags = [f"--api={api}", "--requests=6", "--concurrency=2", "--warmup=0", "--output-tokens=4", "--model=m"]
        status, found, errors = await bench(f"{url}/v1", *flags)
    assert (status, found["ok"], found["failed"]) == (0, 6, 0), (errors, found)
    assert found["tokens_with_warmup"] == 24
    assert {body["path"] for body in seen} == {path}
    assert all(body["model"] == "m" and body["stream"] for body in seen)


async def test_no_server_is_status_one_with_the_reason() -> None:
    status, found, _ = await bench(f"http://127.0.0.1:{free_port()}", "--duration=30")
    assert status == 1
    assert set(found["errors"]) == {"connection refused"}


async def test_bad_flags_are_status_two_with_a_sentence() -> None:
    for flags, said in [
        (["--slo=ttft=soon"], "--slo"),
        (["--duration=1", "--requests=1"], "either"),
        (["--extra=[]"], "--extra"),
        (["--prompts=nowhere.jsonl"], "nowhere.jsonl"),
    ]:
        status, _, errors = await bench("http://127.0.0.1:1", *flags)
        assert status == 2
        assert said in errors
