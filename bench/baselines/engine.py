"""A bare engine's server: OpenAI's chat completions on uvicorn, a token a step, and nothing else. What upstreams cost.

python -m bench.baselines.engine --port 8001 --step-ms 10
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
_ENCODE = msgspec.json.Encoder().encode


class App:
    def __init__(self, step_s: float) -> None:
        self.step_s = step_s

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = msgspec.json.decode(body or b"{}")
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        if scope["method"] == "POST":
            await self.stream(send, asked)
        await send({"type": "http.response.body", "body": b""})

    async def stream(self, send: Any, asked: dict[str, Any]) -> None:
        num = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":['
        token = head + b'{"index":0,"delta":{"content":" fusi"},"logprobs":null,"finish_reason":null}]}\n\n'
        due = time.monotonic()
        for _ in range(num):
            if self.step_s:
                due += self.step_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await send({"type": "http.response.body", "body": token, "more_body": True})
        usage = _ENCODE({"prompt_tokens": 1, "completion_tokens": num, "total_tokens": num + 1})
        last = head + b'{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
        counted = head + b'],"usage":%s}\n\ndata: [DONE]\n\n' % usage
        await send({"type": "http.response.body", "body": last + counted, "more_body": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--step-ms", type=float, default=0.0)
    asked = parser.parse_args()
    gc.freeze()
    app = App(asked.step_ms / 1000)
    uvicorn.run(app, port=asked.port, log_level="warning", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
