"""Chat completions and completions: pure translation, there and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.hints import taken
from penstock.api.openai import chat, completions
from penstock.api.openai.chat import ChatBody, ChatForm
from penstock.api.openai.completions import CompletionBody, CompletionForm
from penstock.errors import InvalidRequest, PenstockError, UnsupportedParameter
from penstock.http.body_json import validate
from penstock.job import Message, Sampling
from penstock.rich_token import Logprob, RichToken, Token, ToolCall, Whole, join

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

texts = st.text(max_size=6)
rich_tokens = st.builds(
    RichToken,
    texts,
    texts,
    st.lists(st.builds(ToolCall, st.integers(0, 2), texts, texts, texts), max_size=2).map(tuple),
    st.lists(st.builds(Logprob, texts, st.floats(-9, 0)), max_size=2).map(tuple),
)
answers = st.lists(st.lists(st.one_of(texts, rich_tokens), max_size=6), min_size=1, max_size=3)


def _chat(**body: Any) -> Any:
    data = {"messages": HELLO} | body
    return chat.drafts_of(validate(ChatBody, taken(data, "chat", chat.REFUSED)))


def _completion(**body: Any) -> Any:
    data = {"prompt": "hello"} | body
    return completions.drafts_of(validate(CompletionBody, taken(data, "completions", completions.REFUSED)))


def _refusal(make: Any, **body: Any) -> PenstockError:
    with pytest.raises(InvalidRequest) as refused:
        make(**body)
    return refused.value


# ── there ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_chat_asks_for_nothing_special() -> None:
    (draft,) = _chat()
    assert draft.messages == (Message("user", "hello"),)
    assert Sampling(**draft.sampling).named() == []
    assert (draft.model, draft.max_tokens, draft.stream, draft.is_kept) == (None, None, False, False)


def test_a_schema_is_required_by_its_type_and_belongs_to_no_other() -> None:
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"}
    (draft,) = _chat(response_format={"type": "json_schema", "json_schema": schema})
    assert draft.sampling["response_format"] == {"type": "json_schema", "json_schema": schema}
    for wrong in ({"type": "json_schema"}, {"type": "json_object", "json_schema": schema}):
        assert _refusal(_chat, response_format=wrong).param == "response_format.json_schema"


def test_every_field_of_a_chat_arrives() -> None:
    (draft,) = _chat(
        model="m",
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        stop=["a", "b"],
        seed=7,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 3},
        logprobs=True,
        top_logprobs=2,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        response_format={"type": "json_object"},
        reasoning_effort="low",
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.1,
        user="u",
        metadata={"a": "b"},
        stream=True,
        timeout_s=5,
        on_disconnect="continue",
    )
    assert draft.sampling == {
        "temperature": 0,
        "top_p": 0.5,
        "stop": ("a", "b"),
        "seed": 7,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": 3},
        "top_k": 4,
        "min_p": 0.1,
        "logprobs": 2,
        "tools": (TOOL,),
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
    }
    assert (draft.max_tokens, draft.user, draft.metadata) == (9, "u", {"a": "b"})
    assert (draft.stream, draft.timeout_s, draft.on_disconnect) == (True, 5, "continue")
    apart = {"max_tokens", "max_tokens_given", "dimensions", "extras", "add_special_tokens", "return_token_strs"}
    assert set(draft.sampling) | apart == set(Sampling.__struct_fields__)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_an_answer_with_reasoning_may_be_given_back(name: str) -> None:
    whole = Whole("Yes", "hm", (ToolCall(0, "c1", "f", "{}"),))
    message = ChatForm("r", "m", 5).choice(0, whole, "tool_calls")["message"]
    message[name] = message.pop("reasoning_content")
    (draft,) = _chat(messages=[{"role": "user", "content": "Hi", name: None}, message])
    assert draft.messages == (
        Message("user", "Hi"),
        Message("assistant", "Yes", tool_calls=(ToolCall(0, "c1", "f", "{}"),), reasoning="hm"),
    )


def test_a_conversation_with_tools_and_images_arrives() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    (draft,) = _chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": [{"type": "text", "text": "what is this?"}, image], "name": "ann"},
            # as an answer of this API is given back by its client, nulls and all
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "audio": None,
                "function_call": None,
                "annotations": [],
                "tool_calls": [call],
            },
            {"role": "tool", "content": "sun", "tool_call_id": "c1"},
        ],
        tools=[TOOL],
    )
    assert draft.messages == (
        Message("developer", "be\nbrief"),
        Message("user", "what is this?", parts=({"type": "text", "text": "what is this?"}, image), name="ann"),
        Message("assistant", "", tool_calls=(ToolCall(0, "c1", "weather", "{}"),)),
        Message("tool", "sun", tool_call_id="c1"),
    )


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "gopher://h/x", "FTP://h", " http://h", "//h/a.png", "/a.png", "javascript:1", "http:h"],
)
def test_an_image_is_on_the_web_or_in_the_request(url: str) -> None:
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    error = _refusal(_chat, messages=[{"role": "user", "content": content}])
    assert error.param == "messages.0.content.1.image_url.url"
    assert "https:, http: or data:" in error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 129}, "n"),
        ({"stop": ["a"] * 33}, "stop"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"max_token": 5}, "max_token"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_a_wrong_chat_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    assert _refusal(_chat, **body).param == param


@pytest.mark.parametrize("name", sorted(chat.REFUSED))
def test_an_ability_that_no_worker_has_is_refused_by_name(name: str) -> None:
    refused = _refusal(_chat, **{name: {"x": 1}})
    assert isinstance(refused, UnsupportedParameter)
    assert refused.param == name
    for harmless in (None, *chat.REFUSED[name]):
        assert len(_chat(**{name: harmless})) == 1


def test_true_is_not_one() -> None:
    assert _refusal(_completion, best_of=True).param == "best_of"
    assert _refusal(_completion, echo=0).param == "echo"


def test_n_answers_have_a_seed_each() -> None:
    assert [draft.sampling["seed"] for draft in _chat(n=3, seed=2**63 - 2)] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert [draft.sampling["seed"] for draft in _chat(n=2)] == [None, None]


def test_completions_of_several_prompts_stand_in_their_order() -> None:
    drafts = _completion(prompt=["a", "b"], n=2, logprobs=0, max_tokens=3)
    assert [draft.prompt for draft in drafts] == ["a", "a", "b", "b"]
    assert {draft.sampling["logprobs"] for draft in drafts} == {0}
    assert _refusal(_completion, prompt=["a"] * 65, n=2).param == "n"
    assert [draft.prompt for draft in _completion(prompt=[1, 2])] == [(1, 2)]
    assert [draft.prompt for draft in _completion(prompt=[[1, 2], [3]])] == [(1, 2), (3,)]
    assert _refusal(_completion, prompt=[1, "a"]).param == "prompt.0"
    assert _refusal(_completion, suffix="x").param == "suffix"


# ── and back ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _data(frames: bytes) -> list[dict[str, Any]]:
    lines = [line for line in frames.split(b"\n\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines if line != b"data: [DONE]"]


def _joined(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a client makes of the chunks: the choices of a whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "reasoning": "", "calls": {}, "logprobs": []})
            delta = part["delta"]
            choice["text"] += delta.get("content", "")
            choice["reasoning"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                known = choice["calls"].setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                known["id"] = known["id"] or call.get("id", "")
                known["name"] += call["function"].get("name", "")
                known["arguments"] += call["function"]["arguments"]
            choice["logprobs"] += (part["logprobs"] or {"content": []})["content"]
            choice["reason"] = part["finish_reason"]
    return [choices[index] for index in sorted(choices)]


@given(answers, st.booleans())
def test_chunks_add_up_to_the_whole_answer(said: list[list[Token]], includes_usage: bool) -> None:
    form = ChatForm("r", "m", 5, includes_usage=includes_usage)
    frames = b""
    for index, tokens in enumerate(said):
        frames += b"".join(form.open(index)) + b"".join(form.token(index, token) for token in tokens)
        frames += form.finish(index, "stop")
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    frames += form.close(usage)
    assert frames.endswith(b"data: [DONE]\n\n")
    chunks = _data(frames)
    assert {(chunk["id"], chunk["object"], chunk["created"]) for chunk in chunks} == {
        ("chatcmpl-r", "chat.completion.chunk", 5)
    }
    if includes_usage:
        assert chunks.pop() == {**chunks[0], "choices": [], "usage": usage}
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert not any("usage" in chunk for chunk in chunks)
    whole = json.loads(form.whole([form.choice(i, join(tokens), "stop") for i, tokens in enumerate(said)], usage))
    for streamed, choice in zip(_joined(chunks), whole["choices"], strict=True):
        message = choice["message"]
        calls = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", ())]
        assert streamed["text"] == (message["content"] or "")
        assert streamed["reasoning"] == message.get("reasoning_content", "")
        assert [streamed["calls"][index] for index in sorted(streamed["calls"])] == calls
        assert streamed["logprobs"] == (choice["logprobs"] or {"content": []})["content"]
        assert streamed["reason"] == choice["finish_reason"] == "stop"


@given(st.lists(st.one_of(texts, rich_tokens), max_size=6))
def test_completion_chunks_add_up_to_the_whole_answer(tokens: list[Token]) -> None:
    form = CompletionForm("r", "m", 5)
    chunks = _data(b"".join(form.token(0, token) for token in tokens) + form.finish(0, "length") + form.close({}))
    whole = form.choice(0, join(tokens), "length")
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    named = [name for chunk in chunks for name in (chunk["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    assert named == (whole["logprobs"] or {"tokens": []})["tokens"]


def test_offsets_of_log_probabilities_continue_from_chunk_to_chunk() -> None:
    form = CompletionForm("r", "m", 5)
    said = [RichToken("abc", logprobs=(Logprob("abc", -1),)), RichToken("de", logprobs=(Logprob("de", -1),))]
    chunks = _data(b"".join(form.token(0, token) for token in said))
    offsets = [at for chunk in chunks for at in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == form.choice(0, join(said), "stop")["logprobs"]["text_offset"] == [0, 3]


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("reasoning_content", ["reasoning_content"]),
        ("reasoning", ["reasoning"]),
        ("both", ["reasoning_content", "reasoning"]),
    ],
)
def test_reasoning_has_the_name_that_was_set(field: Any, names: list[str]) -> None:
    form = ChatForm("r", "m", 5, reasoning_field=field)
    token = RichToken("a", reasoning="hm")
    (chunk,) = _data(form.token(0, token))
    message = form.choice(0, join([token]), "stop")["message"]
    for said in (chunk["choices"][0]["delta"], message):
        assert {name: said[name] for name in said if name.startswith("reasoning")} == dict.fromkeys(names, "hm")


def test_an_error_ends_a_stream_without_done() -> None:
    assert _data(ChatForm("r", "m", 5).error(UnsupportedParameter("no", param="n"))) == [
        {"error": {"message": "no", "type": "invalid_request_error", "code": "unsupported_parameter", "param": "n"}}
    ]
