"""The architecture of Penstock written naively, as a first version would be: FastAPI's `StreamingResponse`, a pub/sub
object of redis-py for each request, a worker that blocks in BLPOP, gathers a batch over its window, runs it to its end,
and awaits a PUBLISH for each token. No log, no lease, no limit, no cancellation.

    python -m bench.baselines.naive gateway --port 8002 --redis-url redis://127.0.0.1:6379
    python -m bench.baselines.naive worker --redis-url redis://127.0.0.1:6379 --step-ms 5
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from redis.asyncio import Redis

QUEUE = "inference:queue"
# redis-py's default pool of 100 would fail most requests at 256 streams; this much kindness it gets.
MAX_CONNECTIONS = 5000


class Body(BaseModel):
    prompt: str
    max_tokens: int = 64
    stream: bool = False
    model: str = "mock"


def create_app(redis_url: str) -> FastAPI:
    redis: Redis = Redis.from_url(redis_url, max_connections=MAX_CONNECTIONS)
    numbers = itertools.count(1)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        await redis.ping()
        return {"ready": True}

    async def tokens(request_id: str, body: Body) -> AsyncIterator[dict[str, Any]]:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(f"inference:response:{request_id}")
            job = {"id": request_id, "model": body.model, "prompt": body.prompt, "max_tokens": body.max_tokens}
            await redis.rpush(QUEUE, json.dumps(job))
            async for message in pubsub.listen():
                if message["type"] == "message":
                    data = json.loads(message["data"])
                    yield data
                    if data["kind"] == "done":
                        return

    async def events(request_id: str, body: Body) -> AsyncIterator[str]:
        num = 0
        async for data in tokens(request_id, body):
            if data["kind"] == "token":
                num += 1
                shown = {"request_id": request_id, "index": data["index"], "text": data["text"]}
                yield f"id: {request_id}/1795430509446-{num}\nevent: token\ndata: {json.dumps(shown)}\n\n"
            else:
                end = json.dumps(_end(request_id, num))
                yield f"id: {request_id}/1795430509446-{num}\nevent: done\ndata: {end}\n\n"

    @app.post("/v1/generate")
    async def generate(body: Body) -> Response:
        request_id = f"g000000000000.{next(numbers):026d}"
        headers = {"x-request-id": request_id}
        if body.stream:
            return StreamingResponse(events(request_id, body), media_type="text/event-stream", headers=headers)
        texts = [data["text"] async for data in tokens(request_id, body) if data["kind"] == "token"]
        whole = {"text": "".join(texts), **_end(request_id, len(texts))}
        return Response(json.dumps(whole), media_type="application/json", headers=headers)

    return app


def _end(request_id: str, num: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": num, "total_tokens": num + 1}
    return {"request_id": request_id, "model": "mock", "finish_reason": "length", "usage": usage}


async def work(redis_url: str, step_s: float, max_batch_size: int, window_s: float) -> None:
    async with Redis.from_url(redis_url, socket_timeout=None) as redis:
        while True:
            item = await redis.blpop([QUEUE], timeout=1)
            if item is None:
                continue
            jobs = [json.loads(item[1])]
            deadline = time.monotonic() + window_s
            while len(jobs) < max_batch_size and (left_s := deadline - time.monotonic()) > 0:
                item = await redis.blpop([QUEUE], timeout=left_s)
                if item is not None:
                    jobs.append(json.loads(item[1]))
            jobs.sort(key=_batch_key)
            for _, batch in itertools.groupby(jobs, key=_batch_key):
                await run(redis, list(batch), step_s)


def _batch_key(job: dict[str, Any]) -> tuple[str, int]:
    return job["model"], job["max_tokens"]


async def run(redis: Redis, batch: list[dict[str, Any]], step_s: float) -> None:
    num = batch[0]["max_tokens"]
    for index in range(num):
        if step_s:
            await asyncio.sleep(step_s)
        for job in batch:
            token = {"kind": "token", "index": index, "text": " fusi"}
            await redis.publish(f"inference:response:{job['id']}", json.dumps(token))
    for job in batch:
        await redis.publish(f"inference:response:{job['id']}", json.dumps({"kind": "done"}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["gateway", "worker"])
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--port", type=int, default=8002)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--max-batch-size", type=int, default=256)
    parser.add_argument("--batch-window-ms", type=float, default=10.0)
    asked = parser.parse_args()
    if asked.command == "worker":
        asyncio.run(work(asked.redis_url, asked.step_ms / 1000, asked.max_batch_size, asked.batch_window_ms / 1000))
        return
    uvicorn.run(
        create_app(asked.redis_url),
        port=asked.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main()
