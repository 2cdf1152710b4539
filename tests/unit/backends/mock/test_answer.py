"""What the mock answers: to a natural end, in JSON, with reasoning, as dictated; and the same at every attempt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.backends.mock.answer import REASONING, Ends, answer_to
from penstock.backends.mock.engine import MockBackend
from penstock.backends.mock.sentences import natural_length
from penstock.backends.mock.text import key_of
from penstock.event import Completion, Done, Failed, fold
from penstock.job import Batch, Claim, Job, Message, Sampling
from penstock.rich_token import RichToken, Token, Whole, join

TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer", "minimum": 1}},
    "required": ["name", "people"],
}


def chat(text: str = "hello", **sampling: Any) -> Job:
    sampling = {"max_tokens": 500, **sampling}
    return Job(id="j", model="mock", messages=(Message("user", text),), sampling=Sampling(**sampling))


def prompt(text: str = "hello", **sampling: Any) -> Job:
    return Job(id="j", model="mock", prompt=text, sampling=Sampling(**{"max_tokens": 500, **sampling}))


def by_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


async def answered(job: Job, backend: MockBackend | None = None, tokens: tuple[Token, ...] = ()) -> Completion:
    claim = Claim(job, 1, 1e9, tokens)
    events = [event async for event in (backend or MockBackend()).generate(Batch((claim,)))]
    return fold(events, Completion(tokens))


async def ended(job: Job, backend: MockBackend | None = None) -> tuple[Whole, str, int]:
    """The answer, why it ended, and its number of tokens."""
    done = await answered(job, backend)
    assert isinstance(done.end, Done), done.end
    assert done.end.usage.completion_tokens == len(done.tokens)
    return join(done.tokens), done.end.finish_reason, len(done.tokens)


async def test_a_conversation_ends_by_itself_and_a_prompt_at_max_tokens() -> None:
    whole, reason, num = await ended(chat())
    assert (reason, num) == ("stop", natural_length(key_of(chat())))
    assert whole.text.endswith(".")
    assert (await ended(prompt()))[1:] == ("length", 500)


async def test_where_sentences_end_can_be_chosen() -> None:
    assert (await ended(chat(), MockBackend(ends="length")))[1:] == ("length", 500)
    assert (await ended(prompt(), MockBackend(ends="natural")))[1:] == ("stop", natural_length(key_of(prompt())))


async def test_extras_move_the_end_of_sentences() -> None:
    assert (await ended(chat(extras={"ignore_eos": True})))[1:] == ("length", 500)
    natural = natural_length(key_of(chat()))
    for extras in ({"ignore_eos": False}, {"min_tokens": 3}, {"min_tokens": natural}):
        assert (await ended(chat(extras=extras)))[1:] == ("stop", natural)
    assert (await ended(chat(extras={"min_tokens": 90})))[1:] == ("stop", 90)
    assert (await ended(chat(extras={"min_tokens": 90}, reasoning_effort="low")))[1:] == ("stop", 90)
    assert (await ended(chat(extras={"min_tokens": 90}, max_tokens=80)))[1:] == ("length", 80)
    for name, value in (("ignore_eos", 1), ("min_tokens", "9"), ("min_tokens", True)):
        done = await answered(chat(extras={name: value}))
        assert isinstance(done.end, Failed)
        assert (done.end.code, done.end.param) == ("invalid_request", name)


async def test_max_tokens_cuts_a_natural_answer_and_the_length_depends_on_the_prompt_and_the_seed() -> None:
    length = natural_length(key_of(chat()))
    assert (await ended(chat(max_tokens=length)))[1:] == ("stop", length)
    assert (await ended(chat(max_tokens=length - 1)))[1:] == ("length", length - 1)
    assert len({(await ended(chat(seed=seed)))[2] for seed in range(10)}) > 3


async def test_the_id_never_enters() -> None:
    asked = chat(response_format=by_schema(CITY), reasoning_effort="low")
    other = Job(id="other", model="mock", messages=asked.messages, sampling=asked.sampling)
    assert (await answered(asked)).tokens == (await answered(other)).tokens


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"response_format": by_schema(CITY)},
        {"response_format": {"type": "json_object"}},
        {"tools": (TOOL,)},
        {"reasoning_effort": "minimal"},
        {"reasoning_effort": "minimal", "tools": (TOOL,)},
        {"logprobs": 2, "reasoning_effort": "minimal"},
        {"response_format": by_schema(CITY), "max_tokens": 3},
    ],
)
async def test_another_attempt_continues_at_the_right_token_to_the_same_end(sampling: dict[str, Any]) -> None:
    job = chat(**sampling)
    whole = await answered(job)
    assert len(whole.tokens) >= 3
    for num in range(len(whole.tokens) + 1):
        again = await answered(job, tokens=whole.tokens[:num])
        assert again.tokens == whole.tokens
        assert isinstance(again.end, Done)
        assert isinstance(whole.end, Done)
        assert (again.end.finish_reason, again.end.usage) == (whole.end.finish_reason, whole.end.usage)


async def test_json_by_schema_streams_in_several_tokens_and_is_cut_by_max_tokens() -> None:
    whole, reason, num = await ended(chat(response_format=by_schema(CITY)))
    city = json.loads(whole.text)
    assert (type(city["name"]), type(city["people"]), reason) == (str, int, "stop")
    assert num >= 4
    cut = await ended(chat(response_format=by_schema(CITY), max_tokens=num - 1))
    assert cut[1:] == ("length", num - 1)
    assert whole.text.startswith(cut[0].text)
    assert (await ended(chat(response_format=by_schema(CITY), seed=5)))[0].text != whole.text


@pytest.mark.parametrize("response_format", [{"type": "json_object"}, {"type": "json_schema"}])
async def test_json_without_a_schema_is_an_object(response_format: dict[str, Any]) -> None:
    whole, reason, _ = await ended(prompt(response_format=response_format))
    assert (list(json.loads(whole.text)), reason) == (["answer"], "stop")


async def test_a_schema_to_which_there_is_no_value_is_an_error_that_names_the_field() -> None:
    for sampling, param in (
        ({"response_format": by_schema({"type": "string", "pattern": r"^(a)\1$"})}, "response_format"),
        ({"tools": ({"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}},)}, "tools"),
    ):
        done = await answered(chat(**sampling))
        assert isinstance(done.end, Failed)
        assert (done.end.code, done.end.param, done.tokens) == ("invalid_request", param, ())


@pytest.mark.parametrize("effort", REASONING)
async def test_reasoning_comes_before_the_same_answer(effort: str) -> None:
    plain, _, num = await ended(chat())
    whole, reason, total = await ended(chat(reasoning_effort=effort))
    assert (whole.text, reason, total) == (plain.text, "stop", num + REASONING[effort])
    assert len(whole.reasoning.split()) == REASONING[effort]
    assert whole.reasoning != whole.text[: len(whole.reasoning)]


async def test_reasoning_counts_among_the_tokens() -> None:
    whole, reason, num = await ended(prompt(reasoning_effort="low", max_tokens=20))
    assert (len(whole.reasoning.split()), len(whole.text.split()), reason, num) == (12, 8, "length", 20)
    whole, reason, num = await ended(chat(reasoning_effort="low", max_tokens=5))
    assert (whole.text, reason, num) == ("", "length", 5)
    assert (await ended(chat(reasoning_effort="none")))[0].reasoning == ""


async def test_log_probabilities_are_those_of_the_text() -> None:
    whole, _, _ = await ended(chat(logprobs=2, reasoning_effort="low"))
    assert "".join(one.token for one in whole.logprobs) == whole.text
    said = await ended(chat("[[say a b]]", logprobs=0))
    assert [one.token for one in said[0].logprobs] == ["a", " b"]


async def test_dictated_words_are_the_answer_whatever_else_is_asked() -> None:
    for sampling in ({}, {"tools": (TOOL,)}, {"response_format": by_schema(CITY)}):
        whole, reason, num = await ended(chat("[[say one two three]]", **sampling))
        assert (whole.text, whole.tool_calls, reason, num) == ("one two three", (), "stop", 3)
    assert (await ended(prompt("[[say one two]]"), MockBackend(ends="length")))[1:] == ("stop", 2)
    assert (await ended(chat("[[say one two three]]", max_tokens=2)))[1:] == ("length", 2)
    assert (await ended(chat("[[say ]]")))[1:] == ("stop", 0)
    assert (await ended(chat("[[echo]] hello")))[0].text == "hello"


async def test_dictated_words_come_before_a_call_that_is_demanded() -> None:
    whole, reason, _ = await ended(chat("[[say I look.]]", tools=(TOOL,), tool_choice="required"))
    assert (whole.text, [call.name for call in whole.tool_calls], reason) == ("I look.", ["weather"], "tool_calls")


def test_a_plain_token_costs_no_more_than_its_word() -> None:
    """No wrapper is around the function that a long answer calls for each token."""
    assert answer_to(prompt()).token_of.__qualname__.startswith("sentences.")


def test_fields_of_what_is_switched_off_are_not_accepted() -> None:
    every = set(MockBackend().capabilities.accepts)
    for option, fields in {
        "tools": {"tools", "tool_choice", "parallel_tool_calls"},
        "json": {"response_format"},
        "reasoning": {"reasoning_effort"},
        "logprobs": {"logprobs"},
        "embeds": {"dimensions"},
    }.items():
        off = MockBackend(**{option: False}).capabilities  # type: ignore[arg-type]  # by name
        assert every - set(off.accepts) == fields
        assert off.embeds is (option != "embeds")


async def test_reasoning_is_a_part_of_its_own() -> None:
    tokens = (await answered(chat(reasoning_effort="minimal"))).tokens
    assert [isinstance(token, RichToken) for token in tokens[:7]] == [True] * 6 + [False]


@pytest.mark.parametrize("ends", ["auto", "length"])
def test_where_no_limit_is_named_it_has_one_of_its_own(ends: Ends) -> None:
    """A gateway's default is far more than a page."""
    for most, num in ((100_000, 256), (100, 100)):
        sampling = Sampling(max_tokens=most, max_tokens_given=False)
        answer = answer_to(Job(id="j", model="m", prompt="x", sampling=sampling), ends)
        assert (answer.num_tokens, answer.reason) == (num, "length")
