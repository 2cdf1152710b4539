"""The tokenizer's routes, the pure part: bodies to drafts, results to answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.api.fields import without_refused
from penstock.api.intake import Draft
from penstock.api.vllm import tokenizer
from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.http.body_json import validate
from penstock.job import Message
from penstock.tasks import Tokenized, encode

TOOL = {"type": "function", "function": {"name": "f"}}
TURNS = [{"role": "user", "content": "hi"}]


def _draft(**data: Any) -> Draft:
    return tokenizer.tokenize_draft(validate(tokenizer.TokenizeBody, without_refused(data, tokenizer.REFUSED)))


def test_a_prompt_and_a_conversation() -> None:
    draft = _draft(prompt="", model="m", timeout_s=3)
    assert (draft.task, draft.prompt, draft.messages, draft.model, draft.timeout_s) == ("tokenize", "", None, "m", 3)
    talk = _draft(messages=TURNS, tools=[TOOL], add_generation_prompt=True, continue_final_message=False)
    assert (talk.prompt, talk.messages) == (None, (Message("user", "hi"),))
    assert talk.sampling["tools"] == (TOOL,)
    assert talk.extras == {}


def test_what_the_template_reads_is_an_extra() -> None:
    asked = {"chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False}
    assert _draft(messages=TURNS, **asked).extras == asked
    assert _draft(messages=TURNS, continue_final_message=True).extras == {"continue_final_message": True}
    assert _draft(prompt="a", add_generation_prompt=True, chat_template_kwargs={}).extras == {}


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ({"prompt": "a"}, None),
        ({"prompt": "a", "add_special_tokens": True}, None),
        ({"prompt": "a", "add_special_tokens": False}, False),
        ({"messages": TURNS, "add_special_tokens": False}, None),
        ({"messages": TURNS, "add_special_tokens": True}, True),
    ],
)
def test_the_default_of_special_tokens_asks_for_nothing(data: dict[str, Any], asked: bool | None) -> None:
    assert _draft(**data).sampling["add_special_tokens"] is asked


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": TURNS}, "prompt"),
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
        ({"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt"),
        ({"prompt": "a", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"messages": TURNS, "chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"messages": TURNS, "chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    ],
)
def test_what_is_neither_is_refused(data: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _draft(**data)
    assert caught.value.param == param


@pytest.mark.parametrize("name", sorted(tokenizer.REFUSED))
def test_what_no_backend_honours_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        _draft(messages=TURNS, **{name: "x"})
    assert caught.value.param == name


def test_token_ids_are_one_input() -> None:
    draft = tokenizer.detokenize_draft(validate(tokenizer.DetokenizeBody, {"tokens": [5, 67]}))
    assert (draft.task, draft.inputs) == ("detokenize", ((5, 67),))
    empty = tokenizer.detokenize_draft(validate(tokenizer.DetokenizeBody, {"tokens": []}))
    assert empty.inputs == ((),)
    for wrong in ([-1], ["a"], [2**63], [1.5]):
        with pytest.raises(InvalidRequest) as caught:
            validate(tokenizer.DetokenizeBody, {"tokens": wrong})
        assert caught.value.param == "tokens.0"


def test_the_answers() -> None:
    whole = msgspec.json.encode(tokenizer.tokenized([encode(Tokenized((5, 67), ("a", "b"), 4096))]))
    assert whole == b'{"count":2,"max_model_len":4096,"tokens":[5,67],"token_strs":["a","b"]}'
    none = msgspec.json.encode(tokenizer.tokenized([encode(Tokenized(()))]))
    assert none == b'{"count":0,"max_model_len":null,"tokens":[],"token_strs":null}'
    assert tokenizer.detokenized([]) == {"prompt": ""}
    assert tokenizer.info(['{"tokenizer_class":"T"}']) == {"tokenizer_class": "T"}
