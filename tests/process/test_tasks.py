"""vLLM's routes and `count_tokens` over a whole gateway with a worker: answers, refusals, keys and limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.api.vllm.routes import ALSO_RERANK, ALSO_SCORE, DETOKENIZE, RERANK, SCORE, TOKENIZE, TOKENIZER_INFO
from tests.support.programs import site

ECHO = f"{Path(__file__).parents[2]}/examples/echo_backend.py:Echo"
MODELS = f"mock=mock;echo={ECHO};vectors=mock:embeds=true;hostile=mock:scripted=true"
COUNT = "/v1/messages/count_tokens"
pytestmark = pytest.mark.timeout(60)

HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with site() as built:
        built.serve("--model", MODELS)
        with httpx2.Client(base_url=built.gateways[0], timeout=30.0) as client:
            yield client


def _post(client: httpx2.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_text_is_tokenized_and_read_back(client: httpx2.Client) -> None:
    found = _post(client, TOKENIZE, model="mock", prompt="hello there", return_token_strs=True)
    assert (found["count"], found["token_strs"], found["max_model_len"]) == (2, ["hello", "there"], None)
    assert _post(client, DETOKENIZE, model="mock", tokens=found["tokens"]) == {"prompt": "hello there"}
    plain = _post(client, TOKENIZE, prompt="hello there", add_special_tokens=False)
    assert (plain["tokens"], plain["token_strs"]) == (found["tokens"], None)
    assert _post(client, DETOKENIZE, tokens=[]) == {"prompt": ""}


def test_a_conversation_has_as_many_tokens_as_its_usage(client: httpx2.Client) -> None:
    tokens = _post(client, TOKENIZE, messages=HELLO)
    counted = _post(client, COUNT, model="mock", messages=HELLO)
    message = _post(client, "/v1/messages", model="mock", messages=HELLO, max_tokens=1)
    chat = _post(client, "/v1/chat/completions", model="mock", messages=HELLO, max_tokens=1)
    assert counted == {"input_tokens": message["usage"]["input_tokens"]}
    assert tokens["count"] == counted["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_the_tokenizer_itself(client: httpx2.Client) -> None:
    posted = _post(client, TOKENIZER_INFO, model="mock")
    answer = client.get(TOKENIZER_INFO, params={"model": "mock"})
    assert posted == answer.json() == (client.get(TOKENIZER_INFO)).json()
    assert posted["tokenizer_class"] == "MockTokenizer"


def test_documents_are_reranked(client: httpx2.Client) -> None:
    body = {"model": "mock", "query": "a b", "documents": ["c", "a b", "a"], "top_n": 2}
    answers = [_post(client, path, **body) for path in (RERANK, *ALSO_RERANK)]
    for answer in answers:
        assert [result["index"] for result in answer["results"]] == [1, 2]
        assert answer["results"][0] == {"index": 1, "document": {"text": "a b"}, "relevance_score": 1.0}
        assert answer["id"].startswith("rerank-")
        assert answer["usage"]["total_tokens"] > 0


def test_texts_are_scored(client: httpx2.Client) -> None:
    for path in (SCORE, *ALSO_SCORE):
        answer = _post(client, path, model="mock", text_1="a b", text_2=["a b", "c"])
        assert [row["score"] for row in answer["data"]] == [1.0, 0.0]
    many = _post(client, SCORE, model="mock", queries=["a"] * 300, documents=["a"] * 300)
    assert [row["score"] for row in many["data"]] == [1.0] * 300


CALLS: dict[str, dict[str, Any]] = {
    TOKENIZE: {"prompt": "x"},
    DETOKENIZE: {"tokens": [1]},
    TOKENIZER_INFO: {},
    RERANK: {"query": "x", "documents": ["x"]},
    SCORE: {"text_1": "x", "text_2": "x"},
    COUNT: {"messages": HELLO},
}


@pytest.mark.parametrize("path", CALLS)
def test_what_a_model_cannot_do_is_501_in_the_form_of_the_api(client: httpx2.Client, path: str) -> None:
    answer = client.post(path, json={"model": "echo", **CALLS[path]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (501, "unsupported_task", "model")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json().get("type") == ("error" if path == COUNT else None)
    assert error["type"] == ("api_error" if path == COUNT else "invalid_request_error")


@pytest.mark.parametrize("path", CALLS)
def test_a_field_that_is_not_known_and_a_model_that_is_not_served(client: httpx2.Client, path: str) -> None:
    answer = client.post(path, json=CALLS[path] | {"frobnicate": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "frobnicate")
    answer = client.post(path, json=CALLS[path] | {"model": "other"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_task_that_fails_is_an_error_of_the_backend(client: httpx2.Client) -> None:
    answer = client.post(TOKENIZE, json={"model": "hostile", "prompt": "[[fail]]"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "backend_error")


def test_a_repeated_post_is_one_request_that_can_be_looked_at(client: httpx2.Client) -> None:
    headers = {"idempotency-key": "one"}
    first = client.post(SCORE, json={"text_1": "a", "text_2": "a"}, headers=headers)
    again = client.post(SCORE, json={"text_1": "a", "text_2": "a"}, headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["data"] == first.json()["data"]
    seen = (client.get(f"/v1/requests/{first.json()['id'].removeprefix('score-')}")).json()
    assert (seen["state"], seen["finish_reason"], seen["text"]) == ("completed", "stop", "1.0")


# ── token ids in place of texts ──────────────────────────────────────────────────────────────────────────────────


def test_token_ids_are_prompts_and_inputs(client: httpx2.Client) -> None:
    one = _post(client, "/v1/completions", model="mock", prompt=[5, 67], max_tokens=2)
    two = _post(client, "/v1/completions", model="mock", prompt=[[5, 67], [8]], max_tokens=2)
    assert two["choices"][0]["text"] == one["choices"][0]["text"]
    assert (one["usage"]["prompt_tokens"], two["usage"]["prompt_tokens"]) == (2, 3)
    vectors = _post(client, "/v1/embeddings", model="vectors", input=[[57668, 53901], [5]])
    assert len(vectors["data"]) == 2
    assert vectors["usage"]["prompt_tokens"] == 3
    flat = _post(client, "/v1/embeddings", model="vectors", input=[57668, 53901])
    assert flat["data"][0]["embedding"] == vectors["data"][0]["embedding"]


def test_a_model_that_takes_text_alone_refuses_token_ids(client: httpx2.Client) -> None:
    answer = client.post("/v1/completions", json={"model": "echo", "prompt": [5, 67]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": [5, "a"]}, "prompt.0"),
        ("/v1/completions", {"prompt": [[5], ["a"]]}, "prompt.1.0"),
        ("/v1/completions", {"prompt": [-5]}, "prompt.0"),
        ("/v1/completions", {"prompt": [[]]}, "prompt.0"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/embeddings", {"model": "vectors", "input": [[5, 1.5]]}, "input.0.1"),
        ("/v1/embeddings", {"model": "vectors", "input": [True]}, "input.0"),
    ],
)
def test_lists_of_neither_are_refused_at_their_place(
    client: httpx2.Client, path: str, body: dict[str, Any], param: str
) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
