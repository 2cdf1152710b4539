"""From jobs to the bodies that upstreams get: nothing is left out, nothing is made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.openai.engines import ENGINES, EngineName
from penstock.backends.openai.request import ReasoningHistory, RequestShape, build, can_continue
from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.job import OPTIONAL_FIELDS, Job, Message, Sampling
from penstock.rich_token import Logprob, RichToken, Token, ToolCall

ALL = RequestShape(resumes=frozenset(("prompt", "messages")))
ANY = ENGINES["any"]
TALK = (Message("user", "Hello"),)


def body_of(
    job: Job, tokens: tuple[Token, ...] = (), engine: str = "any", shape: RequestShape = ALL
) -> tuple[str, Any]:
    path, body = build(job, tokens, "up", ENGINES[engine], shape)  # type: ignore[index]
    return path, json.loads(body)


THOUGHT = (Message("user", "Hi"), Message("assistant", "Yes", reasoning="hm"))


@pytest.mark.parametrize(
    ("engine", "history", "names"),
    [
        ("vllm", "engine", {"reasoning", "reasoning_content"}),
        ("sglang", "engine", {"reasoning_content"}),
        ("llamacpp", "engine", {"reasoning_content"}),
        ("any", "engine", set()), ("openai", "engine", set()), ("ollama", "engine", set()), ("tgi", "engine", set()),
        ("any", "yes", {"reasoning_content"}),
        ("vllm", "no", set()),
    ],
)  # fmt: skip
def test_reasoning_in_the_history_goes_to_engines_that_want_it(
    engine: EngineName, history: ReasoningHistory, names: set[str]
) -> None:
    shape = RequestShape(reasoning_history=history)
    _, body = build(Job(id="j", model="m", messages=THOUGHT), (), "m", ENGINES[engine], shape)
    first, second = json.loads(body)["messages"]
    assert first == {"role": "user", "content": "Hi"}
    assert second == {"role": "assistant", "content": "Yes"} | dict.fromkeys(names, "hm")


def test_a_prompt_goes_to_completions_and_a_conversation_to_chat() -> None:
    path, body = body_of(Job(id="j", model="m", prompt="Once", sampling=Sampling(max_tokens=7)))
    options = {"n": 1, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7}
    assert (path, body) == ("/completions", {"model": "up", "prompt": "Once", **options})
    talk = Job(id="j", model="m", messages=TALK, sampling=Sampling(max_tokens=7), user="u")
    asked = {"model": "up", "messages": [{"role": "user", "content": "Hello"}], **options, "user": "u"}
    assert body_of(talk) == ("/chat/completions", asked)
    del asked["stream_options"]
    assert body_of(talk, shape=RequestShape(asks_usage=False)) == ("/chat/completions", asked)


def test_where_there_is_only_chat_a_prompt_is_a_users_message() -> None:
    job = Job(id="j", model="m", prompt="Once")
    for engine, shape in (("any", RequestShape("chat")), ("openai", RequestShape())):
        path, body = body_of(job, engine=engine, shape=shape)
        assert (path, body["messages"]) == ("/chat/completions", [{"role": "user", "content": "Once"}])
    with pytest.raises(InvalidRequest, match="prompt") as caught:
        body_of(Job(id="j", model="m", messages=TALK), shape=RequestShape("completions"))
    assert caught.value.param == "messages"


def test_every_kind_of_message() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    call = ToolCall(0, "call_1", "weather", '{"city": "Ulm"}')
    turns = (
        Message("system", "Be brief.", name="boss"),
        Message("user", "", parts=({"type": "text", "text": "What?"}, image)),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "rain", tool_call_id="call_1"),
    )
    _, body = body_of(Job(id="j", model="m", messages=turns))
    function = {"name": "weather", "arguments": '{"city": "Ulm"}'}
    assert body["messages"] == [
        {"role": "system", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "What?"}, image]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    ]


def test_an_image_that_the_engine_would_fetch_is_sent_only_where_that_is_declared() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    job = Job(id="j", model="m", messages=(Message("user", "", parts=(image,)),))
    with pytest.raises(UnsupportedParameter) as refused:
        body_of(job)
    assert refused.value.param == "messages"
    assert body_of(job, shape=RequestShape(fetches=True))[1]["messages"][0]["content"] == [image]


def test_an_engines_own_spelling() -> None:
    sampling = Sampling(max_tokens=9, repetition_penalty=1.5)
    assert (
        body_of(Job(id="j", model="m", messages=TALK, sampling=sampling), engine="llamacpp")[1]["repeat_penalty"] == 1.5
    )
    body = body_of(Job(id="j", model="m", messages=TALK, sampling=sampling), engine="openai")[1]
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


@pytest.mark.parametrize(("num", "chat"), [(0, {"logprobs": True}), (3, {"logprobs": True, "top_logprobs": 3})])
def test_logprobs_have_two_forms(num: int, chat: dict[str, Any]) -> None:
    sampling = Sampling(logprobs=num)
    _, body = body_of(Job(id="j", model="m", messages=TALK, sampling=sampling))
    assert {name: value for name, value in body.items() if "logprobs" in name} == chat
    assert body_of(Job(id="j", model="m", prompt="p", sampling=sampling))[1]["logprobs"] == num


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", ({"type": "function"},)),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", False),
        ("response_format", {"type": "json_object"}),
        ("reasoning_effort", "low"),
    ],
)
def test_a_field_that_a_prompt_cannot_express_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        body_of(Job(id="j", model="m", prompt="p", sampling=Sampling(**{name: value})))
    assert caught.value.param == name


@pytest.mark.parametrize("engine", ["any", "vllm", "openai"])
def test_extras_are_sent_as_they_came_and_replace_nothing(engine: str) -> None:
    extras = {"ignore_eos": True, "beams": [1, {"a": None}]}
    own = {"model": "x", "stream": False, "n": 2, "messages": [], "max_tokens": 1, "max_completion_tokens": 1}
    sampling = Sampling(max_tokens=7, temperature=0.5, extras=extras | own | {"temperature": 2})
    _, body = body_of(Job(id="j", model="m", messages=TALK, sampling=sampling), engine=engine)
    assert {name: body[name] for name in extras} == extras
    limit = ENGINES[engine].names.get("max_tokens", "max_tokens")  # type: ignore[index]
    assert (body["model"], body["stream"], body["n"], body[limit], body["temperature"]) == ("up", True, 1, 7, 0.5)
    assert body["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("engine", "extras", "sent"),
    [
        ("vllm", {"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            "sglang",
            {"enable_thinking": False, "chat_template_kwargs": {"thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": True}},
        ),
        (
            "llamacpp",
            {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ),
        ("any", {"enable_thinking": False}, {"enable_thinking": False}),
    ],
)
def test_a_variable_of_the_template_stands_where_the_engine_reads_it(
    engine: str, extras: dict[str, Any], sent: dict[str, Any]
) -> None:
    _, body = body_of(Job(id="j", model="m", messages=TALK, sampling=Sampling(extras=extras)), engine=engine)
    found = {name: value for name, value in body.items() if name in ("enable_thinking", "chat_template_kwargs")}
    assert found == sent


@pytest.mark.parametrize("name", ["chat_template_kwargs", "enable_thinking", "documents", "bad_words"])
def test_an_extra_of_conversations_is_refused_for_a_prompt(name: str) -> None:
    job = Job(id="j", model="m", prompt="p", sampling=Sampling(extras={name: {}}))
    with pytest.raises(UnsupportedParameter) as caught:
        body_of(job, engine="vllm")
    assert caught.value.param == name
    assert name in str(body_of(job, engine="vllm", shape=RequestShape("chat"))[1])


def test_extras_of_an_answer_that_goes_on_elsewhere() -> None:
    job = Job(id="j", model="m", prompt="p", sampling=Sampling(max_tokens=9, extras={"min_tokens": 5}))
    assert body_of(job)[1]["min_tokens"] == 5
    assert body_of(job, ("a", "b"))[1]["min_tokens"] == 3
    assert body_of(job, ("a",) * 6)[1]["min_tokens"] == 0
    begun = (*TALK, Message("assistant", "Well"))
    extras = {"continue_final_message": True, "add_generation_prompt": False}
    job = Job(id="j", model="m", messages=begun, sampling=Sampling(extras=extras))
    for tokens, text in (((), "Well"), ((", ", "so"), "Well, so")):
        body = body_of(job, tokens, "vllm")[1]
        assert body["messages"][1:] == [{"role": "assistant", "content": text}]
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


numbers = st.floats(0, 2) | st.integers(0, 9)  # 0 is a value
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "stop": st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4).map(tuple),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "top_k": st.integers(1, 100),
    "logprobs": st.integers(0, 20),
    "logit_bias": st.dictionaries(st.text("0123456789", min_size=1, max_size=3), st.floats(-100, 100), min_size=1),
    "tools": st.just(({"type": "function", "function": {"name": "f"}},)),
    "tool_choice": st.sampled_from(["auto", {"type": "function", "function": {"name": "f"}}]),
    "parallel_tool_calls": st.booleans(),
    "response_format": st.just({"type": "json_object"}),
    "reasoning_effort": st.sampled_from(["low", "high"]),
}
samplings = st.fixed_dictionaries({}, optional={name: VALUES.get(name, numbers) for name in OPTIONAL_FIELDS})


@given(samplings, st.sampled_from(sorted(ENGINES)))
def test_every_field_that_was_set_is_sent_once_and_no_other(fields: dict[str, Any], engine: str) -> None:
    _, body = body_of(Job(id="j", model="m", messages=TALK, sampling=Sampling(**fields)), engine=engine)
    names = ENGINES[engine].names  # type: ignore[index]
    always = {"model", "messages", "n", "stream", "stream_options", names.get("max_tokens", "max_tokens")}
    sent = set(body) - always - {"top_logprobs"}
    assert sent == {names.get(name, name) for name in fields}
    for name, value in fields.items():
        if name != "logprobs":
            assert body[names.get(name, name)] == (list(value) if isinstance(value, tuple) else value)


plain = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6).map(tuple)


@given(plain, st.integers(1, 20))
def test_a_continued_answer_sends_its_tokens_and_asks_for_the_missing_ones(tokens: tuple[str, ...], limit: int) -> None:
    sampling = Sampling(max_tokens=limit)
    _, body = body_of(Job(id="j", model="m", prompt="p", sampling=sampling), tokens)
    assert body["prompt"] == "p" + "".join(tokens)
    assert body["max_tokens"] == max(1, limit - len(tokens))
    _, body = body_of(Job(id="j", model="m", messages=TALK, sampling=sampling), tokens)
    assert body["messages"][-1] == {"role": "assistant", "content": "".join(tokens)}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    ("engine", "talk", "prompt"),
    [
        ("any", None, 1024), ("vllm", None, "null"), ("sglang", None, 1024), ("llamacpp", None, None),
        ("ollama", None, None), ("tgi", 1024, 1024), ("openai", None, None),
    ],
)  # fmt: skip
def test_where_no_limit_is_named_an_engine_is_asked_for_all_that_it_has_room_for(
    engine: str, talk: int | None, prompt: int | str | None
) -> None:
    """None: the field is left out."""
    sampling = Sampling(max_tokens=5000, max_tokens_given=False)
    name = ENGINES[engine].names.get("max_tokens", "max_tokens")  # type: ignore[index]
    for job, most in (
        (Job(id="j", model="m", messages=TALK, sampling=sampling), talk),
        (Job(id="j", model="m", prompt="p", sampling=sampling), prompt),
    ):
        _, body = body_of(job, engine=engine)
        assert "max_tokens_given" not in body
        if most is None:
            assert not {name, "max_tokens"} & set(body)
        else:
            assert body[name] == (None if most == "null" else most)


def test_only_text_can_be_continued_and_only_where_that_is_declared() -> None:
    prompt, talk = Job(id="j", model="m", prompt="p"), Job(id="j", model="m", messages=TALK)
    scored = RichToken("a", logprobs=(Logprob("a", -1.0),))
    assert can_continue(prompt, ("a", scored), ALL)
    assert can_continue(talk, ("a",), ALL)
    assert not can_continue(prompt, ("a", RichToken(reasoning="hm")), ALL)
    assert not can_continue(talk, (RichToken(tool_calls=(ToolCall(),)),), ALL)
    assert not can_continue(prompt, ("a",), RequestShape())
    assert not can_continue(talk, ("a",), RequestShape(resumes=frozenset(("prompt",))))
    assert not can_continue(prompt, ("a",), RequestShape("chat", resumes=frozenset(("prompt",)))), (
        "it is a conversation there"
    )
    bound = Job(id="j", model="m", messages=TALK, sampling=Sampling(response_format={"type": "json_object"}))
    assert not can_continue(bound, ("{",), ALL), "its grammar would begin anew"
    for name in ("structured_outputs", "guided_json", "regex", "grammar"):
        bound = Job(id="j", model="m", prompt="p", sampling=Sampling(extras={name: "a+"}))
        assert not can_continue(bound, ("a",), ALL), "its grammar would begin anew"
    free = Job(id="j", model="m", prompt="p", sampling=Sampling(extras={"ignore_eos": True}))
    assert can_continue(free, ("a",), ALL)


def test_token_ids_are_a_prompt_of_the_engines_completions_and_of_no_chat() -> None:
    ids = Job(id="j", model="m", prompt=(5, 67))
    assert body_of(ids, engine="vllm")[1]["prompt"] == [5, 67]
    assert not can_continue(ids, ("a",), ALL), "a text cannot be added to them"
    with pytest.raises(UnsupportedParameter) as caught:
        body_of(ids, engine="openai")
    assert caught.value.param == "prompt"
