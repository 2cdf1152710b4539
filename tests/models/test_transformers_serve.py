"""Penstock before a real engine of another project: `transformers serve`, a tiny model, offline. `make test-models`.

Its streams have no `[DONE]`, and their usage is in the last chunk.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from penstock import AsyncClient
from tests.support.programs import site
from tests.support.servers import free_port

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
        reason="the extra [transformers] is not installed: make test-models",
    ),
]

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a running `transformers serve`, and its model's name."""
    model = tmp_path_factory.mktemp("model")
    env = os.environ | OFFLINE
    subprocess.run([sys.executable, "-m", "tests.models.tiny", str(model)], check=True, env=env, timeout=120)
    port = free_port()
    with (model / "serve.log").open("wb") as log:
        program = Path(sys.executable).with_name("transformers")
        process = subprocess.Popen(
            [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)], env=env, stdout=log, stderr=log
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, model / "serve.log")
            yield f"http://127.0.0.1:{port}", str(model)
        finally:
            process.terminate()
            process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)  # polling with a deadline; there is nothing to wait on in another process
    raise AssertionError(log.read_text())


def test_the_official_client_through_penstock_to_a_real_engine(engine: tuple[str, str]) -> None:
    url, model = engine
    with site() as built:
        built.serve("--model", f"tiny=openai:url={url},model={model},accepts=temperature+top_p+seed,health=/health")
        with OpenAI(base_url=f"{built.gateways[0]}/v1", api_key="any", max_retries=0) as client:
            asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0}
            whole = client.chat.completions.create(**asked)
            assert whole.choices[0].finish_reason == "length"
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 12
            assert whole.usage.prompt_tokens > 5
            chunks = list(client.chat.completions.create(**asked, stream=True))
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert streamed == whole.choices[0].message.content
            direct = OpenAI(base_url=f"{url}/v1", api_key="any").chat.completions.create(**asked | {"model": model})
            assert direct.choices[0].message.content == streamed
            text = client.completions.create(model="tiny", prompt="the quick", max_tokens=7)
            assert text.usage is not None
            assert text.usage.completion_tokens == 7


async def test_side_by_side_and_cancelled(engine: tuple[str, str]) -> None:
    url, model = engine
    with site() as built:
        built.serve("--model", f"tiny=openai:url={url},model={model},slots=2")
        async with AsyncClient(built.gateways[0]) as client:
            answers = await asyncio.gather(*(client.generate(f"question {i}", max_tokens=6) for i in range(6)))
            assert all(answer.usage.completion_tokens == 6 for answer in answers)
            async with client.stream("long", max_tokens=200) as stream:
                await anext(aiter(stream))
            assert (await client.handle(stream.request_id).status()).state == "cancelled"
            assert (await client.generate("after", max_tokens=4)).usage.completion_tokens == 4
