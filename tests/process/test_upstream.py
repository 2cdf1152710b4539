"""Penstock before upstream engines, in processes: replicas die, tiers stand in, and Penstock is its own upstream."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from penstock import AsyncClient
from penstock.backends.mock_text import verify_chain
from tests.process import reading
from tests.process.programs import Site, site
from tests.upstream import tokens_of
from tests.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(120)

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class Engine:
    """The hostile upstream as a process of its own."""

    def __init__(self, mood: str = "ok", token_ms: float = 5.0, port: int = 0) -> None:
        args = ("--mood", mood, "--token-ms", str(token_ms), "--port", str(port))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.upstream", *args], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    started: list[Engine] = []
    yield started
    for engine in started:
        engine.stop()


async def test_a_replica_is_killed_under_its_streams(engines: list[Engine]) -> None:
    """Two replicas that can go on from a prefix: every stream goes on at the other, with every token once."""
    engines += [Engine(), Engine()]
    url = "+".join(engine.url for engine in engines)
    with site() as built:
        built.serve("--model", f"m=openai:url={url},engine=vllm,resumes=prompt")
        received: list[list[str]] = [[] for _ in range(16)]
        async with AsyncClient(built.gateways[0]) as client:

            async def one(number: int) -> None:
                async with client.stream(f"question {number}", max_tokens=80) as stream:
                    async for token in stream:
                        received[number].append(token)

            asking = [asyncio.create_task(one(number)) for number in range(16)]
            await wait_until(lambda: all(len(tokens) > 5 for tokens in received), "all have begun", 30)
            engines[0].process.send_signal(signal.SIGKILL)
            await asyncio.gather(*asking)
        for number, tokens in enumerate(received):
            assert tokens == tokens_of(f"question {number}", 80)
        async with reading.client() as http:
            text = (await http.get(f"{built.gateways[0]}/metrics")).text
            assert reading.metric(text, "penstock_upstream_requests_total", outcome="cut") >= 1
            assert reading.metric(text, "penstock_upstream_requests_total", outcome="ok") == 16


async def test_a_hosted_tier_stands_in_and_is_left_again(engines: list[Engine]) -> None:
    engines += [Engine(), Engine()]
    own, hosted = engines
    with site() as built:
        options = f"url={own.url},url2={hosted.url},max_failures=1,eject_s=0.1,health=none"
        built.serve("--model", f"m=openai:{options},aliases=gpt-4o")
        async with AsyncClient(built.gateways[0]) as client, reading.client() as http:

            async def count(**labels: str) -> float:
                text = (await http.get(f"{built.gateways[0]}/metrics")).text
                return reading.metric(text, "penstock_upstream_requests_total", **labels)

            assert (await client.generate("a", model="gpt-4o", max_tokens=4)).text == "".join(tokens_of("a", 4))
            assert await count(upstream=f"127.0.0.1:{own.port}", outcome="ok") == 1
            own.process.kill()
            own.process.wait()
            for number in range(4):
                assert (await client.generate(f"b {number}", max_tokens=4)).usage.completion_tokens == 4
            assert await count(upstream=f"127.0.0.1:{hosted.port}", outcome="ok") == 4
            text = (await http.get(f"{built.gateways[0]}/metrics")).text
            assert reading.metric(text, "penstock_upstream_fallbacks_total", tier="1") == 4
            engines.append(Engine(port=own.port))
            before = await count(upstream=f"127.0.0.1:{own.port}", outcome="ok")
            for number in range(200):
                await client.generate(f"c {number}", max_tokens=2)
                if await count(upstream=f"127.0.0.1:{own.port}", outcome="ok") > before:
                    break
            else:
                pytest.fail("the own engine was not asked again")


async def test_clients_that_leave_stop_the_engine(engines: list[Engine]) -> None:
    engines.append(Engine(token_ms=50))
    with site() as built:
        built.serve("--model", f"m=openai:url={engines[0].url}")
        async with AsyncClient(built.gateways[0]) as client, reading.client() as http:
            async with client.stream("long", max_tokens=500) as stream:
                await anext(aiter(stream))
            assert (await client.handle(stream.request_id).status()).state == "cancelled"

            async def num_open() -> float:
                text = (await http.get(f"{built.gateways[0]}/metrics")).text
                return reading.metric(text, "penstock_upstream_open_streams")

            async def is_closed() -> bool:
                return await num_open() == 0

            await wait_until_async(is_closed, "the engine's stream is closed")


@pytest.fixture(scope="module")
def layers() -> Iterator[Site]:
    """Penstock before Penstock: the upper one knows the lower one as an OpenAI-compatible server only."""
    with site() as built:
        built.serve("--model", "small=mock:step_ms=3,chain=true;tools=mock:tools=true;vectors=mock:embeds=true")
        url = built.gateways[0]
        accepts = "accepts=temperature+top_p+stop+seed+logprobs"
        built.serve(
            "--model",
            ";".join(
                [
                    f"big=openai:url={url},model=small,{accepts},health=/readyz",
                    f"tools=openai:url={url},accepts=stop+tools+tool_choice+parallel_tool_calls",
                    f"vectors=openai:url={url},task=embed",
                ]
            ),
        )
        yield built


def _client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def test_two_layers_say_what_one_says(layers: Site) -> None:
    lower, upper = map(_client, layers.gateways)
    with lower, upper:
        for asked in (
            {"max_tokens": 12},
            {"max_tokens": 12, "seed": 3, "temperature": 0.5},
            {"max_tokens": 12, "n": 2},
        ):
            below = lower.chat.completions.create(model="small", messages=HELLO, **asked)
            above = upper.chat.completions.create(model="big", messages=HELLO, **asked)
            assert above.choices == below.choices
            assert above.usage == below.usage
        logprobs = upper.chat.completions.create(
            model="big", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
        )
        assert logprobs.choices[0].logprobs is not None
        assert len(logprobs.choices[0].logprobs.content or []) == 3
        text = "".join(
            chunk.choices[0].text
            for chunk in upper.completions.create(model="big", prompt="hi", max_tokens=12, stream=True)
        )
        assert text == lower.completions.create(model="small", prompt="hi", max_tokens=12).choices[0].text
        assert verify_chain([f"{part}]" for part in text.split("]")[:-1]]) is None


def test_tools_and_embeddings_go_through_both_layers(layers: Site) -> None:
    with _client(layers.gateways[1]) as upper:
        chat = upper.chat.completions.create(model="tools", messages=HELLO, tools=[TOOL], max_tokens=64)
        assert chat.choices[0].finish_reason == "tool_calls"
        call: Any = (chat.choices[0].message.tool_calls or [])[0]
        assert json.loads(call.function.arguments) == {"city": "velo"}
        vectors = upper.embeddings.create(model="vectors", input=["a", "b"], dimensions=5)
        assert [len(row.embedding) for row in vectors.data] == [5, 5]
        with pytest.raises(openai.BadRequestError) as refused:
            upper.chat.completions.create(model="vectors", messages=HELLO)
        assert refused.value.param == "model"


def test_what_the_lower_layer_refuses_is_the_upper_ones_error(layers: Site) -> None:
    with _client(layers.gateways[1]) as upper:
        with pytest.raises(openai.BadRequestError) as refused:  # this layer lets through what the one below may not
            upper.chat.completions.create(
                model="tools", messages=[*HELLO, {"role": "tool", "content": "x", "tool_call_id": ""}], tools=[TOOL]
            )
        assert refused.value.param
        with pytest.raises(openai.BadRequestError) as refused:
            upper.chat.completions.create(model="big", messages=HELLO, presence_penalty=1)
        assert (refused.value.param, refused.value.code) == ("presence_penalty", "unsupported_parameter")


async def test_many_at_once_through_both_layers(layers: Site) -> None:
    async with AsyncOpenAI(base_url=f"{layers.gateways[1]}/v1", api_key="any", max_retries=0) as upper:

        async def one(number: int) -> str:
            asked: Any = [{"role": "user", "content": f"question {number}"}]
            answer = await upper.chat.completions.create(model="big", messages=asked, max_tokens=10)
            return answer.choices[0].message.content or ""

        texts = await asyncio.gather(*(one(number) for number in range(48)))
        assert len(set(texts)) == 48
