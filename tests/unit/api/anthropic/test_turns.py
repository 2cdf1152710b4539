"""The conversations of Anthropic's Messages: blocks to messages."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.api.intake import Draft
from penstock.errors import InvalidRequest
from penstock.job import Message
from tests.support.drafts import drafts_of

HI = [{"role": "user", "content": "hi"}]
TEXT = {"type": "text", "text": "x"}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}


def _draft(messages: list[dict[str, Any]], **data: Any) -> Draft:
    (draft,) = drafts_of("messages", {"max_tokens": 9, "messages": messages, **data})
    return draft


def _refused(messages: list[dict[str, Any]], **data: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        _draft(messages, **data)
    return caught.value.param


def _user(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


def _answer(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def _call(id_: str, name: str = "f") -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": {}}


def _result(id_: str, content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": content, **fields}


def test_images_become_parts() -> None:
    (message,) = _draft(_user({"type": "text", "text": "what?"}, PNG)).messages or ()
    assert message == Message("user", "what?", parts=({"type": "text", "text": "what?"}, SHOWN))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gopher://h/x", "/a.png"])
def test_an_image_is_on_the_web_or_in_the_request(url: str) -> None:
    image = {"type": "image", "source": {"type": "url", "url": url}}
    assert _refused(_user(image)) == "messages.0.content.0.source.url"
    inside = [*HI, _answer(_call("t")), *_user(_result("t", [image]))]
    assert _refused(inside) == "messages.2.content.0.content.0.source.url"


def test_the_result_of_a_tool_is_first() -> None:
    assert _refused([*HI, _answer(_call("t")), *_user(TEXT, _result("t"))]) == "messages.2.content.1"


def test_the_images_of_results_are_shown_behind_all_of_them() -> None:
    """The APIs of engines have text only in a tool's message, and the results of one answer side by side."""
    results = [_result("t1", [TEXT, PNG], is_error=True), _result("t2", [PNG, PNG]), _result("t3", "z")]
    turns = [*HI, _answer(_call("t1", "Read"), _call("t2", "Shot"), _call("t3")), *_user(*results, TEXT)]
    assert (_draft(turns).messages or ())[2:] == (
        Message("tool", "Error: x", tool_call_id="t1"),
        Message("tool", "", tool_call_id="t2"),
        Message("tool", "z", tool_call_id="t3"),
        Message(
            "user",
            "From the result of Read:\nFrom the result of Shot:\nx",
            parts=(
                {"type": "text", "text": "From the result of Read:"},
                SHOWN,
                {"type": "text", "text": "From the result of Shot:"},
                *(SHOWN, SHOWN),
                {"type": "text", "text": "x"},
            ),
        ),
    )


@pytest.mark.parametrize("begun", ["{", [{"type": "text", "text": "{"}]])
def test_an_answer_may_be_begun(begun: Any) -> None:
    draft = _draft([*HI, {"role": "assistant", "content": begun}])
    assert (draft.is_begun, draft.messages) == (True, (Message("user", "hi"), Message("assistant", "{")))
    assert not _draft(HI).is_begun


@pytest.mark.parametrize("begun", ["", [], [{"type": "text", "text": ""}]])
def test_an_answer_of_which_nothing_is_begun_is_not_there(begun: Any) -> None:
    draft = _draft([*HI, {"role": "assistant", "content": begun}])
    assert (draft.is_begun, draft.messages) == (False, (Message("user", "hi"),))
    assert _refused([{"role": "assistant", "content": begun}], system="x") == "messages"


def test_an_answer_that_ends_in_a_call_cannot_be_continued() -> None:
    assert _refused([*HI, _answer(TEXT, _call("t"))]) == "messages"


def test_thinking_that_only_anthropic_can_read_is_dropped() -> None:
    hidden = {"type": "redacted_thinking", "data": "EmwKAhgB"}
    said = {"type": "text", "text": "Hi."}
    users = _user({"type": "text", "text": "a"})
    assert _draft([*users, _answer(hidden, said), *users]) == _draft([*users, _answer(said), *users])
    assert _refused([*users, *_user(hidden)]) == "messages.1.content.0"
