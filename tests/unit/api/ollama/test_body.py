"""Ollama's bodies to drafts."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.api.intake import Draft
from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.job import Message, Sampling
from penstock.rich_token import ToolCall
from tests.support.drafts import drafts_of

PNG = "iVBORw0KGgo="


def _chat(*turns: dict[str, Any], **data: Any) -> Draft:
    (draft,) = drafts_of("ollama", {"messages": list(turns) or [{"role": "user", "content": "hi"}], **data})
    return draft


def _generate(**data: Any) -> Draft:
    (draft,) = drafts_of("ollama", {"prompt": "hi", **data})
    return draft


def _refused(make: Any, *args: Any, **data: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        make(*args, **data)
    return caught.value.param


def test_a_plain_chat_is_a_stream_that_asks_for_nothing_special() -> None:
    draft = _chat(model="m")
    assert draft.messages == (Message("user", "hi"),)
    assert Sampling(**draft.sampling).named() == []
    assert (draft.model, draft.stream, draft.max_tokens, draft.hints) == ("m", True, None, {"reasoning_effort": None})
    assert not _chat(stream=False).stream


def test_every_option_arrives() -> None:
    options = {
        "num_predict": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": -3, "stop": ["a", "b"],
        "repeat_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3,
    }  # fmt: skip
    draft = _generate(options=options, format="json", logprobs=True, top_logprobs=2, think="high")
    assert draft.max_tokens == 7
    assert {name: value for name, value in draft.sampling.items() if value is not None} == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": -3, "stop": ("a", "b"),
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "logprobs": 2,
        "response_format": {"type": "json_object"},
    }  # fmt: skip
    assert draft.hints == {"reasoning_effort": "high"}


def test_options_that_are_engines_own_are_extras() -> None:
    options = {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "typical_p": 0.7, "repeat_last_n": -1}
    draft = _chat(options=options)
    assert draft.extras == options
    assert {name: draft.names[name] for name in options} == {name: f"options.{name}" for name in options}
    defaults = {"mirostat": 0, "mirostat_tau": 5, "mirostat_eta": 0.1, "typical_p": 1.0, "repeat_last_n": 64}
    assert _chat(options=defaults).extras == {}


def test_a_schema_and_thinking() -> None:
    schema = {"type": "object", "properties": {}}
    named = {"name": "answer", "schema": schema, "strict": True}
    assert _chat(format=schema).sampling["response_format"] == {"type": "json_schema", "json_schema": named}
    assert _chat(format="").sampling["response_format"] is None
    assert [_chat(think=think).hints["reasoning_effort"] for think in (True, False, None)] == ["medium", "none", None]


def test_a_prompt_is_the_users_turn_unless_it_is_raw() -> None:
    assert _generate(system="be brief").messages == (Message("system", "be brief"), Message("user", "hi"))
    (message,) = _generate(images=[PNG]).messages or ()
    assert message.parts == (
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    )
    raw = _generate(raw=True)
    assert (raw.prompt, raw.messages) == ("hi", None)
    assert _refused(_generate, raw=True, system="x") == "system"


def test_results_answer_calls_by_id_by_name_or_in_their_order() -> None:
    def call(name: str, **more: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"a": "ä"}}, **more}

    def result(**more: Any) -> dict[str, Any]:
        return {"role": "tool", "content": "x", **more}

    asked = {
        "role": "assistant",
        "content": "",
        "thinking": "hm",
        "tool_calls": [call("f"), call("g"), call("f", id="z")],
    }
    draft = _chat(asked, result(tool_call_id="z"), result(tool_name="g"), result(), {"role": "user", "content": "so?"})
    messages = draft.messages or ()
    assert messages[0] == Message(
        "assistant",
        "",
        tool_calls=tuple(
            ToolCall(number, call_id, name, '{"a": "ä"}')
            for number, (call_id, name) in enumerate((("call_0_0", "f"), ("call_0_1", "g"), ("z", "f")))
        ),
        reasoning="hm",
    )
    assert [message.tool_call_id for message in messages[1:4]] == ["z", "call_0_1", "call_0_0"]


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "tool", "content": "x", "tool_name": "f"}, "messages.0.tool_name"),
        ({"role": "tool", "content": "x", "tool_call_id": "f"}, "messages.0.tool_call_id"),
        ({"role": "system", "content": "x", "images": [PNG]}, "messages.0.images"),
        ({"role": "user", "content": "x", "thinking": "x"}, "messages.0.thinking"),
        ({"role": "user", "content": "x", "images": ["AAAA"]}, "messages.0.images.0"),
        ({"role": "user", "content": "x", "tool_name": "f"}, "messages.0.tool_name"),
        ({"role": "critic", "content": "x"}, "messages.0.role"),
    ],
)
def test_a_turn_that_is_wrong_is_named(turn: dict[str, Any], param: str) -> None:
    assert _refused(_chat, turn) == param


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"template": "x"}, "template"),
        ({"context": [1]}, "context"),
        ({"options": {"mirostat": 3}}, "options.mirostat"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"temperature": 3}}, "options.temperature"),
        ({"format": "xml"}, "format"),
        ({"think": "a lot"}, "think"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)
def test_what_is_not_there_is_refused_by_name(data: dict[str, Any], param: str) -> None:
    assert _refused(_generate, **data) == param


def test_what_asks_for_nothing_is_taken() -> None:
    nothing = {"suffix": "", "template": "", "context": [], "images": [], "system": "", "format": "", "keep_alive": -1}
    options = {"num_ctx": 4096, "num_predict": -1, "top_k": 0, "mirostat": 0, "repeat_penalty": 1.0, "stop": []}
    assert _generate(**nothing, options=options) == _generate()


def test_texts_to_embed() -> None:
    (draft,) = drafts_of("ollama-embed", {"input": ["a", "b"], "dimensions": 3, "truncate": True, "options": {"x": 1}})
    assert (draft.inputs, draft.sampling) == (("a", "b"), {"dimensions": 3})
    with pytest.raises(InvalidRequest):
        drafts_of("ollama-embed", {"input": []})


def test_a_refusal_names_the_option() -> None:
    assert _generate().names["max_tokens"] == "options.num_predict"
    assert _chat().names["messages"] == "messages"
    assert issubclass(UnsupportedParameter, InvalidRequest)
