"""`POST /v1/generate`: it takes what the other APIs take, and makes the same `Job` of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from penstock.api.conversation import ConversationFields
from penstock.api.hints import taken
from penstock.api.intake import Draft, job_of
from penstock.api.native import GenerateBody, draft_of, generate_body, without_several
from penstock.api.native_answers import TextAnswer
from penstock.api.openai import chat, completions
from penstock.api.openai.chat import ChatBody
from penstock.api.openai.completions import CompletionBody
from penstock.api.openai.fields import ChoiceFields
from penstock.backends.base import OPTIONAL_FIELDS
from penstock.client import Options
from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.body_json import validate
from penstock.job import Job, Message, Sampling
from penstock.metrics import Metrics
from penstock.rich_token import Logprob, ToolCall, Whole, call_id_of, with_call_ids
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at":"sea"}'}}

_OWN = {"prompt", "messages", "background", "queue_events"}


def _body(data: dict[str, Any]) -> GenerateBody:
    return validate(GenerateBody, without_several(data))


def _native(data: dict[str, Any]) -> Draft:
    return draft_of(_body(data))


def _chat(data: dict[str, Any]) -> Draft:
    (draft,) = chat.drafts_of(validate(ChatBody, taken(data, "chat", chat.REFUSED)))
    return draft


def _gateway(accepts: tuple[str, ...] = OPTIONAL_FIELDS) -> Gateway:
    """A gateway that has seen a worker whose model `m` can do all that there is."""
    gateway = Gateway(Settings(), MemoryTransport(), Metrics())
    worker = WorkerInfo(id="w", models={"m": Capabilities(accepts=accepts)}, num_slots=1, num_free=1)
    gateway.pool.look(Pool(depth=0, workers=(worker,)))
    return gateway


def _job(draft: Draft, gateway: Gateway) -> Job:
    return job_of(gateway, Caller("", ""), draft, "g.1")


# ── the same as the other APIs ───────────────────────────────────────────────────────────────────────────────────

texts = st.text(min_size=1, max_size=8)
numbers = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(1, 100),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 2),
    "max_tokens": st.integers(1, 999),
    "timeout_s": st.floats(1, 999),
}
sampling = st.fixed_dictionaries(
    {},
    optional={
        **numbers,
        "stop": texts | st.lists(texts, max_size=4),
        "logit_bias": st.dictionaries(texts, st.floats(-100, 100), max_size=3),
        "model": st.just("m"),
        "user": st.text(max_size=8),
        "stream": st.booleans(),
        "on_disconnect": st.sampled_from(["cancel", "resume", "continue"]),
    },
)
tool_fields = st.fixed_dictionaries(
    {"tools": st.just([TOOL])},
    optional={
        "tool_choice": st.sampled_from(
            ["none", "auto", "required", {"type": "function", "function": {"name": "weather"}}]
        ),
        "parallel_tool_calls": st.booleans(),
    },
)
chat_fields = st.fixed_dictionaries(
    {},
    optional={
        "response_format": st.sampled_from(
            [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x"}}]
        ),
        "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
        "metadata": st.dictionaries(texts, texts, max_size=3),
    },
)
logprob_fields = st.fixed_dictionaries({"logprobs": st.just(True)}, optional={"top_logprobs": st.integers(0, 20)})
turns = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": texts}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(st.just(IMAGE), min_size=1, max_size=2)}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.just([{"type": "text", "text": "a"}, IMAGE])}),
    st.fixed_dictionaries({"role": st.just("user"), "content": texts, "name": texts}),
    st.just({"role": "assistant", "content": None, "tool_calls": [CALL]}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": texts, "tool_call_id": st.just("c1")}),
)


@given(
    st.lists(turns, min_size=1, max_size=4),
    sampling,
    st.just({}) | tool_fields,
    chat_fields,
    st.just({}) | logprob_fields,
)
def test_a_conversation_makes_the_same_job_as_in_chat_completions(
    messages: list[Any], drawn: dict[str, Any], tools: dict[str, Any], more: dict[str, Any], logprobs: dict[str, Any]
) -> None:
    data = {"messages": messages} | drawn | tools | more | logprobs
    gateway = _gateway()
    assert _job(_native(data), gateway) == _job(_chat(data), gateway)


@given(sampling, st.none() | st.integers(1, 5))
def test_a_prompt_makes_the_same_job_as_in_completions(drawn: dict[str, Any], logprobs: int | None) -> None:
    """There `logprobs` is the number that is `top_logprobs` here."""
    data = {"prompt": "Once"} | drawn
    (other,) = completions.drafts_of(validate(CompletionBody, data | {"logprobs": logprobs}))
    native = _native(data | ({} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}))
    gateway = _gateway()
    assert _job(native, gateway) == _job(other, gateway)


def test_no_field_of_another_api_is_missing() -> None:
    ours = set(GenerateBody.model_fields)
    assert set(ConversationFields.model_fields) | set(CompletionBody.model_fields) <= ours | {"stream_options"}
    assert set(ChatBody.model_fields) - ours == {"max_completion_tokens", "stream_options"}
    assert set(ChoiceFields.model_fields) - ours == {"stream_options"}  # the usage is in every `done` event


def test_the_clients_options_are_the_fields_of_a_request() -> None:
    fields = set(GenerateBody.model_fields) - {"prompt", "messages", "stream", "background", "n"}
    assert set(Options.__annotations__) - {"idempotency_key", "extras"} == fields


def test_every_field_of_the_sampling_is_reached_but_those_of_embeddings_and_tasks() -> None:
    more = {"logprobs": True, "tools": [TOOL], "response_format": {"type": "json_object"}}
    apart = {"max_tokens", "max_tokens_given", "dimensions", "extras", "add_special_tokens", "return_token_strs"}
    assert set(_native({"prompt": "x"} | more).sampling) | apart == set(Sampling.__struct_fields__)
    assert Sampling(**_native({"prompt": "x"}).sampling).named() == []


def test_the_page_names_the_body_and_the_limits_of_this_gateway() -> None:
    body = generate_body(Settings(max_tokens_limit=99, max_timeout_s=50.0))
    schema = body.model_json_schema()
    assert (schema["title"], schema["description"]) == ("GenerateBody", GenerateBody.__doc__)
    assert schema["properties"].keys() == GenerateBody.model_fields.keys()
    for name, limit in (("max_tokens", 99), ("timeout_s", 50)):
        assert schema["properties"][name]["maximum"] == limit


@pytest.mark.parametrize("name", ["max_tokens", "timeout_s"])
def test_the_error_of_a_limit_names_its_setting(name: str) -> None:
    settings = Settings()
    setting = {"max_tokens": "max_tokens_limit", "timeout_s": "max_timeout_s"}[name]
    limit = getattr(settings, setting)
    gateway = _gateway()
    assert _job(_native({"prompt": "x", name: limit}), gateway)
    with pytest.raises(
        InvalidRequest, match=rf"'{name}' must be at most {limit:g} \(PENSTOCK_{setting.upper()}\)"
    ) as refused:
        _job(_native({"prompt": "x", name: limit + 1}), gateway)
    assert refused.value.param == name


# ── its own ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tool_calls_of_an_answer_are_taken_back_as_they_came() -> None:
    answered = [ToolCall(0, "c1", "weather", '{"at":"sea"}'), ToolCall(1, "c2", "weather")]
    given_back = msgspec.json.decode(msgspec.json.encode(answered))
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": given_back},
        {"role": "tool", "content": "sun", "tool_call_id": "c1"},
    ]
    assert _native({"messages": messages}).messages == (
        Message("user", "?"),
        Message("assistant", "", tool_calls=tuple(answered)),
        Message("tool", "sun", tool_call_id="c1"),
    )
    with pytest.raises(InvalidRequest) as wrong:
        _native({"messages": [{"role": "assistant", "tool_calls": [{"id": "c1"}]}]})
    assert (wrong.value.param or "").startswith("messages.0.tool_calls.0")


def test_several_answers_of_one_request_are_refused_by_name_and_one_is_not() -> None:
    assert _native({"prompt": "x", "n": 1}) == _native({"prompt": "x"})
    with pytest.raises(UnsupportedParameter, match="send several, or use /v1/chat/completions") as refused:
        _body({"prompt": "x", "n": 2})
    assert refused.value.param == "n"
    with pytest.raises(InvalidRequest) as wrong:
        _body({"prompt": "x", "n": 0})
    assert wrong.value.param == "n"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_k": 4}, "top_k"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"prompt": None, "messages": [{"role": "user", "content": [IMAGE]}]}, "messages"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    draft = _native({"prompt": "x"} | fields)
    assert _job(draft, _gateway())
    with pytest.raises(UnsupportedParameter) as refused:
        _job(draft, _gateway(accepts=()))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"background": True, "stream": True}, "stream"),
        ({"background": True, "on_disconnect": "resume"}, "on_disconnect"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        _native({"prompt": "x"} | fields)
    assert refused.value.param == param


def test_a_call_without_an_id_gets_the_same_one_at_every_reader() -> None:
    whole = Whole(tool_calls=(ToolCall(0, "c1", "a"), ToolCall(1, "", "b")), logprobs=(Logprob("a", -1.0),))
    named = with_call_ids(whole, "g.1")
    assert [call.id for call in named.tool_calls] == ["c1", call_id_of("g.1", 1)]
    assert replace(named, tool_calls=whole.tool_calls) == whole
    assert with_call_ids(named, "g.1") is named


def test_the_page_of_an_answer_shows_what_is_encoded() -> None:
    """`TextAnswer` is what OpenAPI shows; what is sent is encoded from `Whole`."""
    whole = Whole("x", "why", (ToolCall(1, "c1", "a", "{}"),), (Logprob("a", -1.0, (("b", -2.0),), b"\xf0", (None,)),))
    encoded = msgspec.json.decode(msgspec.json.encode(whole))
    shown = TextAnswer.model_validate({name: value for name, value in encoded.items() if name != "text"})
    assert shown.model_dump(mode="json") == {name: value for name, value in encoded.items() if name != "text"}
