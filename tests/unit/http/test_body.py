"""The strict edge: whatever bytes come, a valid object or one clear error, and never a word of the prompt in it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.types import Message

from penstock.api.openai.chat import ChatBody, drafts_of
from penstock.errors import BodyTooLarge, InvalidRequest, Overloaded, PenstockError, SlowBody, UnsupportedMediaType
from penstock.http.body_bytes import ClientGone, check_bodiless, check_media_type, read_body
from penstock.http.body_json import MAX_DEPTH, MAX_KEYS, MAX_VALUES, num_marks, parse_json, validate
from penstock.http.connection import WHOLE
from penstock.http.field_errors import MAX_FAULTS
from penstock.job import Job, Sampling
from penstock.wire import decode_job, encode_job
from tests.support.hostile import BAD_FIELDS, ODD_BUT_RIGHT, PARSER, Case

SECRET = "the-secret-of-the-prompt"


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Body(BaseModel):
    """Like the body of `POST /v1/generate`, but owned by this test."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | None = Field(None, min_length=1)
    messages: list[Turn] | None = Field(None, min_length=1)
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=4096)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = Field(None, min_length=1)
    seed: int | None = Field(None, ge=0)
    stream: bool = False
    timeout_s: float | None = Field(None, ge=1)
    n: int = Field(1, le=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Body:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' and 'messages'")
        return self


def refusal(data: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        validate(Body, data)
    assert SECRET not in caught.value.message
    return caught.value


def error_of(call: Callable[[], object]) -> PenstockError | None:
    """Our error, if there was one; any other fails the test."""
    try:
        call()
    except PenstockError as error:
        return error
    return None


# ── parse_json ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", PARSER, ids=lambda case: case.name)
def test_the_corpus_is_refused_by_the_parser(case: Case) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(case.body)
    assert caught.value.status == case.status
    assert caught.value.param == case.param or case.param is None
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("case", ODD_BUT_RIGHT, ids=lambda case: case.name)
def test_unusual_valid_json_is_read(case: Case) -> None:
    assert parse_json(case.body) == json.loads(case.body)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_ours(data: bytes) -> None:
    error = error_of(lambda: parse_json(data))
    assert error is None or error.status == 400
    assert error is None or error.message.encode()


@given(st.text(alphabet='{}[]",:\\u0d8 \n1e9-.NaInfty', max_size=80))
def test_almost_json_raises_nothing_but_ours(text: str) -> None:
    try:
        value = parse_json(text.encode())
    except PenstockError:
        return
    assert json.loads(text) == value
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(_TEXTS, _VALUES, max_size=5), st.booleans())
def test_every_object_is_read_back(value: dict[str, Any], is_escaped: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=is_escaped).encode(), max_depth=1000) == value


@given(st.integers(1, MAX_DEPTH + 8))
def test_depth_is_counted_exactly(levels: int) -> None:
    data = b'{"a":' * levels + b'"]}[{"' + b"}" * levels
    if levels <= MAX_DEPTH:
        parse_json(data)
    else:
        with pytest.raises(InvalidRequest, match=f"nested more than {MAX_DEPTH} levels"):
            parse_json(data)


def test_objects_in_the_schema_of_a_tool_may_be_nested_sixty_deep() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(60):
        schema = {"type": "object", "properties": {"a": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    (draft,) = drafts_of(validate(ChatBody, parse_json(json.dumps(body).encode())))
    assert draft.sampling["tools"] == tuple(tools)
    assert decode_job(encode_job(Job(id="g.1", model="m", prompt="x", sampling=Sampling(tools=tuple(tools)))))


@pytest.mark.parametrize(
    "data",
    [b'"' + b'\\"' * 500_000, b'{"a":"' + b"[{" * 400_000, b'"\\' * 500_000, b'["' * 500_000, b'""' * 500_000],
    ids=["quotes", "brackets in a string", "backslashes", "open strings", "empty strings"],
)
def test_a_megabyte_of_anything_is_refused_in_linear_time(data: bytes) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        parse_json(data)
    assert time.process_time() - began < 1.0


def test_a_bad_value_is_found_where_it_is() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(b'{"a":{"b":[1,2,{"c":NaN}]}}')
    assert caught.value.param == "a.b.2.c"
    assert caught.value.message == "'a.b.2.c' is NaN, which is not JSON."


@pytest.mark.parametrize("item", [b"0", b"{}", b"[]", b'""', b'{"a":1}'])
def test_values_are_counted_before_they_are_parsed(item: bytes) -> None:
    marks = num_marks(item) + 1
    most = (MAX_VALUES - 2) // marks
    assert len(parse_json(b'{"a":[' + b",".join([item] * most) + b"]}")["a"]) == most
    with pytest.raises(InvalidRequest, match="more than 50000 values"):
        parse_json(b'{"a":[' + b",".join([item] * (most + 2)))


@given(_VALUES)
def test_never_are_there_more_values_than_marks(value: Any) -> None:
    def count(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(count(each) for each in inner)

    assert count(value) <= num_marks(json.dumps(value).encode()) + 1


def test_commas_in_a_text_are_not_values() -> None:
    text = '[{, "\\' * MAX_VALUES
    assert parse_json(json.dumps({"a": text}).encode()) == {"a": text}


@pytest.mark.parametrize("where", ["", "a", "a.0.b"])
def test_an_object_of_too_many_keys_is_named(where: str) -> None:
    value: Any = {f"k{number}": number for number in range(MAX_KEYS)}
    wrapped = {"": value, "a": {"a": value}, "a.0.b": {"a": [{"b": value}]}}[where]
    assert parse_json(json.dumps(wrapped).encode()) == wrapped
    value["one more"] = 1
    with pytest.raises(InvalidRequest, match="has more than 1000 keys") as caught:
        parse_json(json.dumps(wrapped).encode())
    assert caught.value.param == (where or None)


# ── validate ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_valid_body_becomes_the_model() -> None:
    body = validate(Body, {"messages": [{"role": "user", "content": "x"}], "stop": ["a"], "temperature": 1})
    assert body.messages == [Turn(role="user", content="x")]
    assert body.stop == ["a"]


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"foo": 1}, "foo", "Unknown field 'foo'."),
        ({"max_tokens": 0}, "max_tokens", "'max_tokens' must be at least 1 and at most 4096."),
        ({"max_tokens": 10**12}, "max_tokens", "'max_tokens' must be at least 1 and at most 4096."),
        ({"max_tokens": "5"}, "max_tokens", "'max_tokens' must be an integer."),
        ({"max_tokens": True}, "max_tokens", "'max_tokens' must be an integer."),
        ({"temperature": 3}, "temperature", "'temperature' must be at least 0 and at most 2."),
        ({"top_p": 0.0}, "top_p", "'top_p' must be more than 0 and at most 1."),
        ({"timeout_s": 0}, "timeout_s", "'timeout_s' must be at least 1."),
        ({"n": 2}, "n", "'n' must be at most 1."),
        ({"stream": "yes"}, "stream", "'stream' must be true or false."),
        ({"stop": 5}, "stop", "'stop' must be a string or an array."),
        ({"stop": ["a"] * 5}, "stop", "'stop' must have at most 4 items."),
        ({"stop": ["a", 5]}, "stop.1", "'stop.1' must be a string."),
        ({"prompt": ""}, "prompt", "'prompt' must not be empty."),
        ({"prompt": [SECRET]}, "prompt", "'prompt' must be a string."),
    ],
)
def test_a_refusal_names_the_field_and_the_allowed_values(more: dict[str, Any], param: str, message: str) -> None:
    error = refusal({"prompt": SECRET} | more)
    assert (error.param, error.message) == (param, message)


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        (
            [{"role": "root", "content": SECRET}],
            "messages.0.role",
            "'messages.0.role' must be 'system', 'user' or 'assistant'.",
        ),
        ([{"role": "user"}], "messages.0.content", "'messages.0.content' is required."),
        ([{"role": "user", "content": SECRET}, SECRET], "messages.1", "'messages.1' must be an object."),
        ([{"role": "user", "content": SECRET, "x": 1}], "messages.0.x", "Unknown field 'messages.0.x'."),
        ([], "messages", "'messages' must not be empty."),
    ],
)  # fmt: skip
def test_a_refusal_names_the_place(messages: list[Any], param: str, message: str) -> None:
    error = refusal({"messages": messages})
    assert (error.param, error.message) == (param, message)


def test_of_many_faults_the_field_is_named_and_no_more() -> None:
    turn: dict[str, Any] = {"role": "user", "content": SECRET}
    error = refusal({"messages": [turn | {f"k{number}": 1 for number in range(MAX_FAULTS + 1)}]})
    assert (error.param, error.message) == ("messages", "'messages' has more than 100 faults.")
    error = refusal({"n": 5, "messages": [turn | {f"k{number}": 1 for number in range(MAX_FAULTS + 1)}]})
    assert (error.param, error.message) == ("n", "'n' must be at most 1.")


def test_unknown_fields_are_one_error() -> None:
    error = refusal({f"k{number}": 1 for number in range(MAX_KEYS)} | {"n": 5})
    assert (error.param, error.message) == ("k0", "Unknown field 'k0'.")


def test_a_rule_over_several_fields_has_no_one_field() -> None:
    error = refusal({"prompt": SECRET, "messages": [{"role": "user", "content": SECRET}]})
    assert error.param is None
    assert error.message == "The body: give exactly one of 'prompt' and 'messages'."


@pytest.mark.parametrize("name", ["", "a\r\nset-cookie: b", "x" * 1000, "\u202e", "{name}"])
def test_odd_field_names_are_not_repeated(name: str) -> None:
    error = refusal({"prompt": SECRET, name: 1})
    assert error.message == ("Unknown field '{name}'." if name == "{name}" else "Unknown field.")


@given(st.dictionaries(st.sampled_from([*Body.model_fields, "foo", ""]), _VALUES, max_size=4))
def test_arbitrary_objects_raise_nothing_but_ours(data: dict[str, Any]) -> None:
    error = error_of(lambda: validate(Body, data))
    assert error is None or error.status == 400
    assert error is None or error.message.endswith(".")


@pytest.mark.parametrize("case", BAD_FIELDS, ids=lambda case: case.name)
def test_the_corpus_is_refused_by_a_model(case: Case) -> None:
    error = refusal(parse_json(case.body))
    assert error.param == case.param or case.param is None


# ── read_body ────────────────────────────────────────────────────────────────────────────────────────────────────


def request_of(
    messages: Iterable[Message], headers: dict[str, str] | None = None, hang: asyncio.Event | None = None
) -> Request:
    """A request whose body arrives as `messages`, and after them nothing."""
    given = {"content-type": "application/json"} if headers is None else headers
    pending = iter(messages)

    async def receive() -> Message:
        for message in pending:
            return message
        await (hang or asyncio.Event()).wait()
        raise AssertionError("the body must not be read further")

    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def part(body: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_arrives_in_parts() -> None:
    assert await read_body(request_of([part(b'{"a"'), part(b""), part(b":1}", False)]), 100, 1.0) == b'{"a":1}'


async def test_a_body_may_have_exactly_the_size() -> None:
    assert len(await read_body(request_of([part(b"x" * 100, False)]), 100, 1.0)) == 100


@pytest.mark.parametrize("headers", [{}, {"content-length": "3"}, {"content-length": "nonsense"}])
async def test_size_is_counted_whatever_was_announced(headers: dict[str, str]) -> None:
    endless = (part(b"x" * 5000) for _ in iter(int, 1))
    with pytest.raises(BodyTooLarge, match=r"larger than 100 bytes \(PENSTOCK_MAX_BODY_BYTES\)"):
        await read_body(request_of(endless, {"content-type": "application/json"} | headers), 100, 1.0)


@pytest.mark.parametrize("length", ["101", "9" * 5000])
async def test_a_body_that_announces_too_much_is_not_kept(length: str) -> None:
    request = request_of([], {"content-type": "application/json", "content-length": length})
    with pytest.raises(BodyTooLarge):
        await read_body(request, 100, 1.0)


async def test_a_body_without_room_is_refused_as_soon_as_its_size_is_known() -> None:
    held: list[int] = []

    def hold(size: int) -> Overloaded | None:
        held.append(size)
        return Overloaded("No room.") if size > 60 else None

    headers = {"content-type": "application/json"}
    assert await read_body(request_of([part(b"x" * 60, False)], headers), 100, 1.0, hold=hold)
    for more in ({"content-length": "61"}, {}):
        request = request_of([part(b"x" * 50), part(b"x" * 50), part(b"x")], headers | more)
        with pytest.raises(Overloaded) as refused:
            await read_body(request, 100, 1.0, hold=hold)
        assert refused.value.headers == {"connection": "close"}, "the rest of it is unread"
    assert held == [60, 60, 61, 50, 100]


async def test_a_slow_body_ends() -> None:
    with pytest.raises(SlowBody, match=r"within 0.02 s \(PENSTOCK_BODY_TIMEOUT_S\)"):
        await read_body(request_of([part(b"{")]), 100, 0.02)


async def test_a_client_that_leaves_is_noticed() -> None:
    with pytest.raises(ClientGone):
        await read_body(request_of([part(b"{"), {"type": "http.disconnect"}]), 100, 1.0)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_other_media_types_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMediaType):
        await read_body(request_of([part(b"{}", False)], headers), 100, 1.0)


async def test_a_missing_content_type_is_answered_with_the_header_to_add() -> None:
    with pytest.raises(UnsupportedMediaType, match="-H 'content-type: application/json'"):
        await read_body(request_of([part(b"{}", False)], {}), 100, 1.0)


def with_headers(*headers: tuple[str, str]) -> Request:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw})


JSON = "application/json"


@pytest.mark.parametrize(
    "headers",
    [
        [("content-encoding", JSON)],
        [("content-encoding", JSON), ("content-encoding", "identity")],
        [("content-type", JSON), ("content-encoding", JSON)],
        [("content-type", JSON), ("content-encoding", "identity"), ("content-encoding", "gzip")],
        [("content-type", JSON), ("content-encoding", "identity, gzip")],
        [("content-type", JSON), ("content-encoding", "GZIP")],
        [("content-type", JSON), ("content-type", JSON)],
        [("content-type", JSON), ("content-type", "text/plain")],
        [("content-type", "text/plain"), ("content-type", JSON)],
        [("content-type", ""), ("content-type", JSON)],
        [("content-type", f"{JSON}, text/plain")],
        [("content-type", f"text/plain; {JSON}")],
        [("content-type", f"{JSON}\xa0")],
        [("content-type", f"{JSON}; charset=utf-8; charset=utf-16")],
        [("content-type", f"{JSON}; CHARSET = latin-1")],
        [("content-type", f"{JSON}; charset")],
        [("content-type", "")],
        [("content-type", ";")],
        [("accept", JSON)],
        [],
    ],
    ids=str,
)
def test_every_other_way_to_say_it_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_media_type(with_headers(*headers))


@pytest.mark.parametrize(
    "headers",
    [
        [("content-type", JSON)],
        [("content-type", "Application/JSON")],
        [("content-type", f'{JSON}; charset="UTF-8"')],
        [("content-type", f"{JSON};")],
        [("content-type", f" {JSON} ; a=b")],
        [("content-type", JSON), ("content-encoding", "identity")],
        [("content-type", JSON), ("content-encoding", "Identity, identity"), ("content-encoding", "")],
        [("accept", "text/plain"), ("content-type", JSON), ("x", "text/plain")],
    ],
    ids=str,
)
def test_json_in_utf8_is_taken(headers: list[tuple[str, str]]) -> None:
    check_media_type(with_headers(*headers))


@pytest.mark.parametrize(
    ("headers", "is_taken"),
    [
        ([], False),
        ([("content-type", "text/plain")], False),
        ([("content-type", "")], False),
        ([("content-type", "text/plain"), ("authorization", "Bearer x")], False),
        ([("content-type", ""), ("x-api-key", "x")], False),
        ([("content-encoding", JSON)], False),
        ([("content-type", JSON)], True),
        ([("authorization", "Bearer x")], True),
        ([("x-api-key", "x")], True),
        ([("api-key", "x")], True),
    ],
    ids=str,
)
def test_without_a_body_json_or_a_key_shows_that_no_page_sent_it(
    headers: list[tuple[str, str]], is_taken: bool
) -> None:
    if is_taken:
        check_bodiless(with_headers(*headers))
    else:
        with pytest.raises(UnsupportedMediaType):
            check_bodiless(with_headers(*headers))


async def test_a_body_that_has_arrived_is_read_without_a_timer() -> None:
    def arrived(*messages: Any) -> Request:
        request = request_of(list(messages))
        request.scope[WHOLE] = True
        return request

    assert await read_body(arrived(part(b"{}", False)), 100, 0.0) == b"{}"
    with pytest.raises(BodyTooLarge):
        await read_body(arrived(part(b"x" * 101, False)), 100, 0.0)
    with pytest.raises(ClientGone):
        await read_body(arrived({"type": "http.disconnect"}), 100, 0.0)
