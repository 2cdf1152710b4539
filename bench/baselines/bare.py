"""A bare ASGI app on uvicorn that sends the events of Penstock and does nothing else: no queue, no check, no second
process. The limit of one uvicorn: what a token costs to send, and nothing before it.

    python -m bench.baselines.bare --port 8001 --step-ms 5
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from typing import Any

import msgspec
import uvicorn

STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_ENCODER = msgspec.json.Encoder()


class App:
    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.num = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await _whole(send, b"ok", b"text/plain", "")
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = msgspec.json.decode(body)
        self.num += 1
        # As long as an id of Penstock, so that the bytes of an event are as many.
        request_id = f"g000000000000.{self.num:026d}"
        if asked.get("stream"):
            await self.stream(send, request_id, asked["max_tokens"])
        else:
            await self.answer(send, request_id, asked["max_tokens"])

    async def stream(self, send: Any, request_id: str, num: int) -> None:
        headers = [*STREAM, (b"x-request-id", request_id.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        due = time.monotonic()
        for index in range(num):
            if self.step_s:
                due += self.step_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            data = _ENCODER.encode({"request_id": request_id, "index": index, "text": " fusi"})
            frame = b"id: %s/1795430509446-%d\nevent: token\ndata: %s\n\n" % (request_id.encode(), index + 1, data)
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        data = _ENCODER.encode(_end(request_id, num))
        frame = b"id: %s/1795430509446-%d\nevent: done\ndata: %s\n\n" % (request_id.encode(), num, data)
        await send({"type": "http.response.body", "body": frame, "more_body": False})

    async def answer(self, send: Any, request_id: str, num: int) -> None:
        if self.step_s:
            await asyncio.sleep(self.step_s * num)
        data = _ENCODER.encode({"text": " fusi" * num, **_end(request_id, num)})
        await _whole(send, data, b"application/json", request_id)


def _end(request_id: str, num: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": num, "total_tokens": num + 1}
    timings = {"queue_ms": 0.158, "ttft_ms": 10.724, "total_ms": 10.851}
    return {
        "request_id": request_id,
        "model": "mock",
        "finish_reason": "length",
        "usage": usage,
        "timings": timings,
    }


async def _whole(send: Any, body: bytes, kind: bytes, request_id: str) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if request_id:
        headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--step-ms", type=float, default=0.0)
    asked = parser.parse_args()
    gc.freeze()
    uvicorn.run(
        App(asked.step_ms / 1000),
        port=asked.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,
        backlog=2048,
    )


if __name__ == "__main__":
    main()
