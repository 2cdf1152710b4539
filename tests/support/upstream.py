"""An upstream of the tests' own: an OpenAI-compatible server on a raw socket, which can misbehave in every known way.

In the test's loop (`async with Upstream() as up`) or as a process of its own (`python -m tests.support.upstream`). Its
answer is a function of the prompt: token i is ` <hash of the prompt>.<i>`, and a prompt that ends in such tokens is
continued. `up.moods` are for the next requests, one each; `up.mood` is for all others. A mood is a word, with `=N`
where it takes a number: see `Mood`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from tests.support.results import result_of

Kind = Literal[
    "ok",
    "status",  # =N: that status, with an envelope; with `retry_after`
    "flat_error",  # 400, the envelope's fields at the top, as some engines have it
    "hang",  # takes the request and never answers
    "hang_after",  # =N tokens, then silence
    "comments_after",  # =N tokens, then comments without end
    "drop",  # hangs up instead of answering
    "cut_after",  # =N tokens, then the connection breaks
    "end_after",  # =N tokens, then a clean end without finish_reason and [DONE]
    "abort_after",  # =N tokens, then finish_reason "abort"
    "error_after",  # =N tokens, then an error event
    "wrong_json_after",  # =N tokens, then a chunk that is no JSON
    "html",  # a page, with status 200
    "json",  # an object that is not an answer
    "whole",  # a whole answer, though a stream was asked for
    "endless_line",
    "endless_event",
    "gzip",  # says that its stream is compressed
    "ignores_max_tokens",
    "long_tokens",  # of =N characters each
    "no_done",  # the forms that servers really have, from here on
    "only_done",
    "usage_in_last",
    "no_usage",
    "crlf",
    "bytewise",
    "one_write",
    "reasoning_content",
    "reasoning",
    "tools",
]
_TOKEN = re.compile(r"(?: [0-9a-f]{4}\.\d+)+$")
PAUSE_S = 0.002
CONTEXT = 24  # tokens of an answer for which no limit is asked


def tokens_of(prompt: str, num: int) -> list[str]:
    """What the upstream answers to a prompt that has no answer in it yet."""
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:4]
    return [f" {mark}.{index}" for index in range(num)]


@dataclass(frozen=True)
class Mood:
    kind: Kind = "ok"
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> Mood:
        kind, _, number = text.partition("=")
        if kind not in get_args(Kind):
            raise ValueError(f"no mood {kind!r}")
        return cls(kind, int(number or 0))  # type: ignore[arg-type]  # checked in the line above


@dataclass
class Seen:
    """One request as the upstream saw it. `left`: its client hung up before the end."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    left: bool = False


@dataclass
class Upstream:
    mood: str = "ok"
    moods: deque[str] = field(default_factory=deque)
    retry_after: str = ""
    key: str = ""
    token_s: float = 0.0
    health: int = 200
    props: str = ""
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    num_open: int = 0
    max_open: int = 0
    num_connections: int = 0
    num_checks: int = 0

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """The port is closed, and every connection breaks."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        ahead: bytes | None = b""
        try:
            while ahead is not None:
                ahead = await self._one(reader, writer, ahead)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test has ended
        finally:
            self._tasks.discard(task)
            if writer.transport is not None:
                writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ahead: bytes) -> bytes | None:
        """One request; what was read of the next one, or None where the connection is not to be used again."""
        head = (ahead + await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        if method == "GET" and (found := result_of(path, {})) is not None:
            self.seen.append(Seen(path, headers, {}))
            await self._say(writer, found)
            return b""
        if method == "GET":
            props = self.props.encode() if path.endswith("/props") else b""
            self.num_checks += not path.endswith("/props")
            writer.write(_head(self.health, "text/plain", length=len(props)) + props)
            await writer.drain()
            return b""
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        seen = Seen(path, headers, body)
        self.seen.append(seen)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        leaving = asyncio.create_task(reader.read(1))
        answering = asyncio.create_task(self._answer(writer, seen))
        try:
            await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                seen.left = True
                return None
            if not answering.result():
                return None
            return leaving.result() or None if leaving.done() else b""
        finally:
            self.num_open -= 1
            for task in (leaving, answering):
                task.cancel()
            await asyncio.gather(leaving, answering, return_exceptions=True)

    async def _answer(self, writer: asyncio.StreamWriter, seen: Seen) -> bool:
        mood = Mood.parse(self.moods.popleft() if self.moods else self.mood)
        if self.key and seen.headers.get("authorization") != f"Bearer {self.key}":
            wrong = seen.headers.get("authorization", "none")
            return await self._refuse(writer, 401, {"error": {"message": f"Wrong key: {wrong}", "code": "bad_key"}})
        if mood.kind == "status":
            error = {"message": f"No: {self.key}", "type": "t", "code": "c", "param": "temperature"}
            return await self._refuse(writer, mood.number, {"error": error})
        if mood.kind == "flat_error":
            return await self._refuse(writer, 400, {"object": "error", "message": "too long", "code": 400})
        if mood.kind == "hang":
            await asyncio.Event().wait()
        if mood.kind == "drop":
            return False
        if (found := result_of(seen.path, seen.body)) is not None:
            await self._say(writer, {} if mood.kind == "json" else found)
            return True
        if seen.path.endswith("/embeddings"):
            return await self._embed(writer, seen, mood)
        if mood.kind in ("html", "json", "whole"):
            kind = "text/html" if mood.kind == "html" else "application/json"
            page = b"<html>Sign in</html>" if mood.kind == "html" else b'{"status": "ok"}'
            if mood.kind == "whole":
                page = json.dumps(_whole("".join(_Script(seen, mood).tokens))).encode()
            writer.write(_head(200, kind, length=len(page)) + page)
            await writer.drain()
            return True
        encoding = "content-encoding: gzip\r\n" if mood.kind == "gzip" else ""
        writer.write(_head(200, "text/event-stream; charset=utf-8", extra=encoding))
        await self._stream(writer, seen, mood)
        return not mood.kind.startswith("cut")

    async def _refuse(self, writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> bool:
        data = json.dumps(body).encode()
        extra = f"retry-after: {self.retry_after}\r\n" if self.retry_after else ""
        writer.write(_head(status, "application/json", length=len(data), extra=extra) + data)
        await writer.drain()
        return True

    async def _embed(self, writer: asyncio.StreamWriter, seen: Seen, mood: Mood) -> bool:
        """Two numbers for each input: its length and its place; in reverse order, as the index says which is which."""
        size = seen.body.get("dimensions", 2)
        rows: list[Any] = [
            {"object": "embedding", "index": place, "embedding": [float(len(text)), float(place)][:size]}
            for place, text in enumerate(seen.body["input"])
        ]
        if mood.kind == "wrong_json_after":
            rows = rows[: mood.number]
        usage = {"prompt_tokens": len(rows), "total_tokens": len(rows)}
        await self._say(writer, {"object": "list", "data": rows[::-1], "usage": usage})
        return True

    async def _say(self, writer: asyncio.StreamWriter, body: Any) -> None:
        data = json.dumps(body).encode()
        writer.write(_head(200, "application/json", length=len(data)) + data)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, seen: Seen, mood: Mood) -> None:
        say = _Sayer(writer, mood)
        if mood.kind.startswith("endless"):
            await say.endless(mood.kind)
        script = _Script(seen, mood)
        await say.comment("hello")
        for number, chunk in enumerate(script.chunks()):
            if mood.kind.endswith("_after") and number == mood.number:
                break
            await say.chunk(chunk)
            await asyncio.sleep(self.token_s)
        if mood.kind.endswith("_after"):
            await say.misbehave()
            return
        for chunk in script.ends():
            await say.chunk(chunk)
        if mood.kind != "no_done":
            await say.data("[DONE]")
        await say.end()


@dataclass
class _Script:
    """The chunks of one answer."""

    seen: Seen
    mood: Mood

    def __post_init__(self) -> None:
        body = self.seen.body
        self.is_chat = "messages" in body
        prompt = body["prompt"] if not self.is_chat else ""
        so_far = " ".join(map(str, prompt)) if isinstance(prompt, list) else prompt  # token ids
        if self.is_chat:
            turns = [dict(turn) for turn in body["messages"]]
            if body.get("continue_final_message"):
                assert body["add_generation_prompt"] is False
                so_far = turns.pop()["content"]
            so_far = json.dumps(turns) + so_far
        match = _TOKEN.search(so_far)
        base = so_far[: match.start()] if match else so_far
        begun = match[0].count(".") if match else 0
        asked = body.get("max_tokens", body.get("max_completion_tokens"))
        asked = CONTEXT if asked is None else asked
        num = begun + (asked if self.mood.kind != "ignores_max_tokens" else 5_000)
        self.tokens = tokens_of(base, num)[begun:]
        if self.mood.kind == "long_tokens":
            self.tokens = ["x" * self.mood.number for _ in self.tokens]
        self.num_prompt = len(base.split()) + begun
        self.reason = "length"
        text = ""
        for index, token in enumerate(self.tokens):
            text += token
            if cuts := [at for stop in body.get("stop", []) if (at := text.find(stop)) >= 0]:
                kept = text[: min(cuts)]
                before = "".join(self.tokens[:index])
                # A real engine holds back what may become a stop string; here the cut token is simply shortened.
                self.tokens = [*self.tokens[:index], kept[len(before) :]] if len(kept) >= len(before) else []
                if not self.tokens:
                    self.tokens = [kept]
                self.reason = "stop"
                break

    def chunks(self) -> list[dict[str, Any]]:
        if self.mood.kind == "tools":
            call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
            parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
            self.reason = "tool_calls"
            return [_delta({"tool_calls": [part]}) for part in (call, *parts)]
        if self.mood.kind in ("reasoning", "reasoning_content"):
            thoughts = [_delta({self.mood.kind: token, "content": None}) for token in self.tokens[:2]]
            return [_delta({"role": "assistant", "content": ""}), *thoughts, *self._plain(self.tokens[2:])]
        return self._plain(self.tokens)

    def _plain(self, tokens: list[str]) -> list[dict[str, Any]]:
        if self.is_chat:
            return [_delta({"content": token}, self._logprobs(token)) for token in tokens]
        return [{"choices": [{"index": 0, "text": token, "logprobs": self._logprobs(token)}]} for token in tokens]

    def _logprobs(self, token: str) -> dict[str, Any] | None:
        asked = self.seen.body.get("logprobs")
        if asked is None or asked is False:
            return None
        if not self.is_chat:
            return {"tokens": [token], "token_logprobs": [-0.5], "top_logprobs": [{token: -0.5}] if asked else None}
        top = [{"token": token, "logprob": -0.5}] * self.seen.body.get("top_logprobs", 0)
        return {"content": [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": top}]}

    def ends(self) -> list[dict[str, Any]]:
        usage = {"prompt_tokens": self.num_prompt, "completion_tokens": len(self.tokens), "total_tokens": 0}
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": self.reason}
        if not self.is_chat:
            last = {"index": 0, "text": "", "finish_reason": self.reason}
        kind = self.mood.kind
        if kind == "only_done":
            return []
        if kind == "no_usage":
            return [{"choices": [last]}]
        if kind == "usage_in_last":
            return [{"choices": [last], "usage": usage}]
        return [{"choices": [last], "usage": None}, {"choices": [], "usage": usage}]


class _Sayer:
    """Puts events on the wire, in the mood's own way."""

    def __init__(self, writer: asyncio.StreamWriter, mood: Mood) -> None:
        self._writer = writer
        self._mood = mood
        self._held = b""

    async def chunk(self, chunk: dict[str, Any]) -> None:
        await self.data(json.dumps({"id": "x", "object": "chunk", **chunk}))

    async def data(self, data: str) -> None:
        if self._mood.kind == "crlf" and data.startswith("{"):
            half = data.index(",") + 1  # JSON may be broken between two members
            await self.raw(f"event: message\r\ndata: {data[:half]}\r\ndata:{data[half:]}\r\n\r\n".encode())
        else:
            await self.raw(f"data: {data}\n\n".encode())

    async def comment(self, text: str) -> None:
        await self.raw(f": {text}\n\n".encode())

    async def raw(self, data: bytes) -> None:
        if self._mood.kind == "one_write":
            self._held += data
            return
        size = 1 if self._mood.kind == "bytewise" else len(data)
        for at in range(0, len(data), size):
            part = data[at : at + size]
            self._writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await self._writer.drain()

    async def end(self) -> None:
        if self._held:
            self._writer.write(b"%x\r\n%s\r\n" % (len(self._held), self._held))
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def endless(self, kind: str) -> None:
        line = b"x" * 65_536
        await self.raw(b"data: ")
        while True:
            await self.raw(line if kind == "endless_line" else b"data: " + line + b"\n")

    async def misbehave(self) -> None:
        kind = self._mood.kind
        if kind == "hang_after":
            await asyncio.Event().wait()
        while kind == "comments_after":
            await self.comment("still here")
            await asyncio.sleep(PAUSE_S)
        if kind == "cut_after":
            return
        if kind == "abort_after":
            await self.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]})
        if kind == "error_after":
            await self.data('{"error": {"message": "out of memory at SECRET", "type": "x", "code": "oom"}}')
        if kind == "wrong_json_after":
            await self.data('{"choices": [')
        await self.end()


def _delta(delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}


def _whole(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return {"choices": [{"index": 0, "message": message, "text": text, "finish_reason": "stop"}], "usage": usage}


def _head(status: int, kind: str, length: int | None = None, extra: str = "") -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{extra}{size}\r\n\r\n".encode()


async def _serve(upstream: Upstream) -> None:
    async with upstream:
        sys.stdout.write(f"{upstream.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mood", default="ok")
    parser.add_argument("--token-ms", type=float, default=0.0)
    parser.add_argument("--key", default="")
    asked = parser.parse_args()
    asyncio.run(_serve(Upstream(asked.mood, port=asked.port, token_s=asked.token_ms / 1000, key=asked.key)))
