"""What is common to every API that submits: defaults and limits of a job, and what a refusal costs its caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from penstock.api import native
from penstock.api.anthropic import body as anthropic
from penstock.api.anthropic.body import MessagesBody
from penstock.api.fields import MAX_INPUTS
from penstock.api.intake import Draft, job_of
from penstock.api.native import GenerateBody
from penstock.api.ollama import body as ollama
from penstock.api.ollama.body import OllamaChatBody, OllamaGenerateBody
from penstock.api.openai import chat, completions
from penstock.api.openai.chat import ChatBody
from penstock.api.openai.completions import CompletionBody
from penstock.api.responses import body as responses
from penstock.api.responses.body import ResponseBody
from penstock.errors import BodyTooLarge, InvalidRequest, UnsupportedParameter
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.body_json import validate
from penstock.job import Job, Message
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport
from tests.support.serving import serving

MIB = 2**20
HI = [{"role": "user", "content": "hi"}]
LEFT = "x-ratelimit-remaining-requests"


def _gateway(can: Capabilities, **settings: Any) -> Gateway:
    gateway = Gateway(Settings(**settings), MemoryTransport(), Metrics())
    gateway.pool.look(Pool(depth=0, workers=(WorkerInfo(id="w", models={"m": can}, num_slots=1, num_free=1),)))
    return gateway


def _job(gateway: Gateway, num_bytes: int = 0, **fields: Any) -> Job:
    return job_of(gateway, Caller("", ""), Draft(**{"prompt": "x"} | fields), "g.1", num_bytes=num_bytes)


# ── a begun answer ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("accepts", "extras"),
    [
        (("continue_final_message",), {"continue_final_message": True}),
        (
            ("add_generation_prompt", "continue_final_message"),
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_a_begun_answer_is_continued_by_the_fields_that_the_engine_has(
    accepts: tuple[str, ...], extras: dict[str, bool]
) -> None:
    begun = (Message("user", "hi"), Message("assistant", "{"))
    job = _job(_gateway(Capabilities(accepts=accepts)), prompt=None, messages=begun, is_begun=True)
    assert job.sampling.extras == extras


def test_a_begun_answer_is_refused_where_the_engine_would_answer_it() -> None:
    begun = (Message("user", "hi"), Message("assistant", "{"))
    with pytest.raises(UnsupportedParameter) as caught:
        _job(_gateway(Capabilities(accepts=("add_generation_prompt",))), prompt=None, messages=begun, is_begun=True)
    assert caught.value.param == "messages"


def test_an_extra_that_an_api_has_in_a_place_of_its_own() -> None:
    """As one at the top of the body: by model, and refused by the client's name."""
    fields: dict[str, Any] = {"extras": {"mirostat": 2}, "names": {"mirostat": "options.mirostat"}}
    assert _job(_gateway(Capabilities(accepts=("mirostat",))), **fields).sampling.extras == {"mirostat": 2}
    with pytest.raises(UnsupportedParameter) as caught:
        _job(_gateway(Capabilities()), **fields)
    assert caught.value.param == "options.mirostat"


# ── how many tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("own", "settings", "most"),
    [
        (None, {}, 32_768),
        (100, {}, 100),
        (None, {"default_max_tokens": 50}, 50),
        (100, {"default_max_tokens": 50}, 50),
        (None, {"max_tokens_limit": 70}, 70),
    ],
)
def test_a_default_stays_within_the_models_own_limit(own: int | None, settings: dict[str, int], most: int) -> None:
    sampling = _job(_gateway(Capabilities(max_tokens=own), **settings)).sampling
    assert (sampling.max_tokens, sampling.max_tokens_given) == (most, False)


def test_what_a_client_names_is_kept_or_refused() -> None:
    gateway = _gateway(Capabilities(max_tokens=100), max_tokens_limit=200)
    sampling = _job(gateway, max_tokens=100).sampling
    assert (sampling.max_tokens, sampling.max_tokens_given) == (100, True)
    with pytest.raises(UnsupportedParameter, match=r"'max_tokens' must be at most 100 .*option max_tokens"):
        _job(gateway, max_tokens=101)
    with pytest.raises(InvalidRequest, match=r"at most 200 \(PENSTOCK_MAX_TOKENS_LIMIT\)"):
        _job(gateway, max_tokens=201)


def test_inputs_to_embed_have_no_limit_of_tokens() -> None:
    gateway = _gateway(Capabilities(embeds=True, max_tokens=1), max_tokens_limit=10)
    keys = {_job(gateway, prompt=None, inputs=("x",) * num).batch_key for num in (1, MAX_INPUTS)}
    assert len(keys) == 1, "they may share a batch"


# ── how large ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_a_model_that_takes_images_gets_a_body_of_their_size() -> None:
    eyes, words = Capabilities(accepts=("images",)), Capabilities()
    assert _job(_gateway(eyes), num_bytes=MIB + 1)
    assert _job(_gateway(words), num_bytes=MIB)
    with pytest.raises(BodyTooLarge, match=r"larger than 1048576 bytes \(PENSTOCK_MAX_BODY_BYTES\).*takes no images"):
        _job(_gateway(words), num_bytes=MIB + 1)


def test_bodies_of_the_size_of_images_are_read_where_a_model_may_take_them() -> None:
    assert _gateway(Capabilities(accepts=("images",))).body_limit == "max_image_body_bytes"
    assert _gateway(Capabilities()).body_limit == "max_body_bytes"
    assert Gateway(Settings(), MemoryTransport(), Metrics()).body_limit == "max_image_body_bytes", "none is known yet"


# ── what a refusal costs ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_without_room_does_not_count_against_its_callers_rate() -> None:
    settings = {
        "models": "mock=mock:step_ms=1000", "max_batch_size": 1, "max_batches": 1, "max_queue_depth": 2,
        "rate_limit_rpm": 1, "rate_limit_burst": 60,
    }  # fmt: skip
    slow = {"prompt": "x", "max_tokens": 100, "background": True}
    async with serving(**settings) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        left = 60
        while (answer := await http.post("/v1/generate", json=slow)).status_code == 202:
            left -= 1
            assert answer.headers[LEFT] == str(left)
        for _ in range(3):
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
            assert answer.headers.get_list(LEFT) == [str(left)]
            answer = await http.post("/v1/generate", json=slow)
        messages = [{"role": "user", "content": "x"}]
        for body in ({"max_tokens": 10**9}, {"temperature": 9}, {"n": 5, "max_tokens": 10**9}):
            answer = await http.post("/v1/chat/completions", json={"messages": messages, **body})
            left -= 1
            assert (answer.status_code, answer.headers[LEFT]) == (400, str(left)), "what is wrong with it counts as one"
        many = {"messages": messages, "n": 20, "max_tokens": 1}
        answer = await http.post("/v1/chat/completions", json=many)
        assert (answer.status_code, answer.headers[LEFT]) == (429, str(left)), "all of it is given back, or none is run"


async def test_a_part_of_a_request_that_is_beyond_the_rate_costs_nothing() -> None:
    settings = {"rate_limit_rpm": 1, "rate_limit_burst": 4}
    async with serving(**settings) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        prompts = {"prompt": ["a", "b", "c"], "max_tokens": 1}
        assert (await http.post("/v1/completions", json=prompts)).headers[LEFT] == "1"
        for _ in range(3):
            answer = await http.post("/v1/completions", json=prompts)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
            assert answer.headers.get_list(LEFT) == ["1"]
            assert 119 <= int(answer.headers["retry-after"]) <= 120, "two are missing"
        assert (await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("body", "draft", "asked"),
    [
        (GenerateBody, native.draft_of, {"prompt": "x"}),
        (ChatBody, chat.drafts_of, {"messages": HI}),
        (CompletionBody, completions.drafts_of, {"prompt": "x"}),
        (MessagesBody, anthropic.draft_of, {"messages": HI, "model": "m", "max_tokens": 5}),
        (ResponseBody, responses.draft_of, {"input": "x"}),
        (OllamaChatBody, ollama.chat_draft_of, {"messages": HI}),
        (OllamaGenerateBody, ollama.generate_draft_of, {"prompt": "x"}),
    ],
)
def test_every_api_tells_the_store_whether_a_client_reads_token_by_token(
    body: type[BaseModel], draft: Callable[[Any], Any], asked: dict[str, Any], is_stream: bool
) -> None:
    """What is not marked as a stream may begin again in the middle of its answer."""
    made = draft(validate(body, asked | {"stream": is_stream}))
    (one,) = made if isinstance(made, list) else [made]
    assert one.stream is is_stream
