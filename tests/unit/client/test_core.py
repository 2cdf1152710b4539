"""The client's core without I/O: whatever breaks, wherever the bytes are cut, each token is given once and in order."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.client import core
from penstock.client.calls import read_as
from penstock.client.core import Policy
from penstock.client.options import Options, body_of, headers_of, policy_of
from penstock.client.route import RetryBudget, Route, error_from_response, read_urls
from penstock.client.state import StreamBase, StreamState
from penstock.client.steps import Broken, Give, Now, Pause, Read, ResponseHead, Rest, Send, Step, Steps
from penstock.client.types import Answer
from penstock.errors import (
    BackendError,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    PenstockError,
    QueueFull,
    RequestNotFound,
    Unavailable,
    WorkerLost,
)
from penstock.rich_token import Logprob, ToolCall
from penstock.sse import ServerEvent, frame

URLS = ("http://a:1", "http://b:2", "http://c:3")
WORDS = [f" w{number}" for number in range(12)]


def _events(words: list[str], after: int = 0, error: str = "") -> bytes:
    """The stream of one request from a token on, as a gateway sends it."""
    frames = [b": keep-alive\n\n"]
    for index in range(after, len(words)):
        data = {"request_id": "g.1", "index": index, "text": words[index]}
        frames.append(frame("token", json.dumps(data).encode(), f"g.1/1-{index + 1}"))
    end: dict[str, Any] = {"request_id": "g.1"}
    if error:
        frames.append(frame("error", json.dumps(end | {"error": {"code": error, "message": "x"}}).encode()))
    else:
        end |= {"model": "m", "finish_reason": "length", "usage": {"prompt_tokens": 1, "completion_tokens": 12}}
        frames.append(frame("done", json.dumps(end).encode(), f"g.1/1-{len(words)}"))
    return b"".join(frames)


@dataclass
class World:
    """Servers and a network in which `troubles` happen, one for each request; then all is well."""

    troubles: list[Any] = field(default_factory=list)
    chunk: int = 7
    now: float = 0.0
    sent: list[Send] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    _data: bytes = b""
    _cut: bool = False

    def do(self, step: Step) -> Any:
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Read):
            data, self._data = self._data[: self.chunk], self._data[self.chunk :]
            return Broken("reset") if not data and self._cut else data
        if isinstance(step, Rest):
            data, self._data = self._data, b""
            return data
        if isinstance(step, Pause):
            self.now += step.seconds
            self.pauses.append(step.seconds)
        if isinstance(step, Give):
            self.given.append(step.text)
        return self.now if isinstance(step, Now) else None

    def _send(self, step: Send) -> ResponseHead | Broken:
        self.sent.append(step)
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble == "refused":
            return Broken("refused", was_connected=False)
        if trouble == "reset":
            return Broken("reset")
        if isinstance(trouble, tuple):
            status, headers, body = trouble
            self._data = body
            return ResponseHead(status, headers)
        after = int(step.headers.get("last-event-id", "-0").rpartition("-")[2])
        whole = _events(WORDS, after)
        if isinstance(trouble, str):  # an error event after what that many tokens are
            code, _, num = trouble.partition(":")
            whole = _events(WORDS[: max(after, int(num))], after, code)
        if isinstance(trouble, float):  # cut after so many more tokens
            whole = _events(WORDS[: after + int(trouble)], after).partition(b"event: done")[0]
        self._data = whole if not isinstance(trouble, int) else whole[: trouble % (len(whole) - 1)]
        self._cut = isinstance(trouble, int) and trouble % 2 == 0  # else it just ends
        return ResponseHead(200, {})


def _play(world: World, steps: Steps[Any]) -> Any:
    reply: Any = None
    while True:
        try:
            reply = world.do(steps.send(reply))
        except StopIteration as stop:
            return stop.value


def _policy(**more: Any) -> Policy:
    return Policy(Route(URLS), **more)


def _unavailable(wait: str | None = None) -> tuple[int, Mapping[str, str], bytes]:
    body = json.dumps({"error": {"code": "draining", "message": "going"}}).encode()
    return 503, {"retry-after": wait} if wait else {}, body


troubles = st.lists(
    st.one_of(
        st.sampled_from(["refused", "reset"]),
        st.just(_unavailable()),
        st.just(_unavailable("1")),
        st.integers(0, 4000),
        st.sampled_from(["draining:0", "draining:3", "draining:9", "store_unavailable:5"]),
    ),
    max_size=6,
)


@given(troubles, st.integers(1, 300))
def test_each_token_is_given_once_whatever_breaks(happens: list[Any], chunk: int) -> None:
    world, state = World(list(happens), chunk), StreamState()
    answer = _play(world, core.stream(_policy(), state, {"prompt": "hi"}, key="k"))
    assert world.given == WORDS
    assert answer == state.answer
    assert (answer.text, answer.request_id, answer.finish_reason) == ("".join(WORDS), "g.1", "length")
    assert len(world.sent) <= len(happens) + 1
    for send in world.sent:
        if send.method == "POST":  # always the very same request
            assert send.headers["idempotency-key"] == "k"
            assert json.loads(send.body or b"") == {"prompt": "hi", "stream": True}


def test_a_resumed_stream_continues_at_the_next_url_after_the_last_event() -> None:
    world, state = World([6.0]), StreamState()
    _play(world, core.stream(_policy(), state, {"prompt": "hi"}, key="k"))
    first, second = world.sent
    assert (first.method, first.url) == ("POST", "http://a:1/v1/generate")
    assert (second.method, second.url) == ("GET", "http://b:2/v1/requests/g.1/events")
    assert second.headers == {"last-event-id": "g.1/1-6"}
    assert world.pauses == []
    assert state.num_resumed == 1


RICH: list[dict[str, Any]] = [
    {"text": "Let me see", "reasoning": "hm"},
    {"text": "", "tool_calls": [{"name": "weather"}]},
    {"text": "", "tool_calls": [{"arguments": '{"at":'}], "logprobs": [{"token": "a", "logprob": -0.5}]},
    {"text": "", "tool_calls": [{"arguments": '"sea"}'}, {"index": 1, "id": "c2", "name": "clock"}]},
]


def _rich_events(after: int) -> bytes:
    frames = [
        frame("token", json.dumps({"request_id": "g.1", "index": index, **RICH[index]}).encode(), f"g.1/1-{index + 1}")
        for index in range(after, len(RICH))
    ]
    end = {"request_id": "g.1", "model": "m", "finish_reason": "tool_calls"}
    return b"".join([*frames, frame("done", json.dumps(end).encode())])


@pytest.mark.parametrize("num_before", range(len(RICH) + 1))
def test_tool_calls_reasoning_and_probabilities_are_joined_also_over_a_break(num_before: int) -> None:
    begun = b"".join(f + b"\n\n" for f in _rich_events(0).split(b"\n\n")[:num_before])
    world = World([(200, {}, begun), (200, {}, _rich_events(num_before))])
    state = StreamState()
    answer = _play(world, core.stream(_policy(), state, {"prompt": "hi"}, key="k"))
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Let me see", "hm", "tool_calls")
    assert answer.tool_calls == (
        ToolCall(0, "call_g.1_0", "weather", '{"at":"sea"}'),  # the engine gave it no id
        ToolCall(1, "c2", "clock"),
    )
    assert answer.logprobs == (Logprob("a", -0.5),)
    assert len(world.given) == len(RICH)
    assert world.sent[1].headers.get("last-event-id") == (f"g.1/1-{num_before}" if num_before else None)
    seen = StreamBase(state)
    assert (seen.text, seen.reasoning, seen.tool_calls) == (answer.text, answer.reasoning, answer.tool_calls)


def test_a_part_of_an_answer_that_a_newer_server_has_in_another_form_is_left_out() -> None:
    state = StreamState()
    data = {"request_id": "g.1", "index": 0, "text": "a", "tool_calls": "new", "novelty": 1}
    assert state.take(ServerEvent("token", "{}", "g.1/1-1"), data) is True
    assert StreamBase(state).text == "a"
    assert StreamBase(state).tool_calls == ()


def test_a_gap_is_not_believed() -> None:
    gap = frame("token", json.dumps({"request_id": "g.1", "index": 1, "text": "x"}).encode(), "g.1/1-2")
    world = World([(200, {}, gap)])
    assert _play(world, core.stream(_policy(), StreamState(), {"prompt": "hi"}, key="k")).text == "".join(WORDS)
    assert world.given == WORDS


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ("backend_error:3", BackendError),
        ("worker_lost:3", WorkerLost),  # it may pass, but tokens were given: another answer would not go on from them
        ("backend_error:0", BackendError),
    ],
)
def test_the_requests_own_end_is_its_error(trouble: str, kind: type[PenstockError]) -> None:
    world, state = World([trouble]), StreamState()
    with pytest.raises(kind) as failed:
        _play(world, core.stream(_policy(), state, {"prompt": "hi"}, key="k"))
    assert failed.value.request_id == "g.1"
    assert not state.is_running
    assert len(world.sent) == 1


def test_a_request_that_failed_before_its_first_token_is_repeated_if_that_may_help() -> None:
    world = World(["worker_lost:0"])
    _play(world, core.stream(_policy(), StreamState(), {"prompt": "hi"}, key="k"))
    assert world.given == WORDS
    assert [send.method for send in world.sent] == ["POST", "POST"]


def test_a_followed_request_is_never_begun() -> None:
    world = World([7])
    _play(world, core.stream(_policy(), StreamState(request_id="g.1"), None))
    assert {send.method for send in world.sent} == {"GET"}
    assert world.given == WORDS
    with pytest.raises(WorkerLost):
        _play(World(["worker_lost:0"]), core.stream(_policy(), StreamState(request_id="g.1"), None))


def test_retries_are_bounded_and_progress_renews_them() -> None:
    with pytest.raises(Unavailable):
        _play(World(["reset"] * 9), core.stream(_policy(max_retries=4), StreamState(), {"prompt": "hi"}, key="k"))
    world = World([1.0] * 10)  # each connection brings one more
    _play(world, core.stream(_policy(max_retries=2), StreamState(), {"prompt": "hi"}, key="k"))
    assert world.given == WORDS


def test_a_call_gives_up_in_time() -> None:
    world = World(["reset"] * 1000)
    with pytest.raises((DeadlineExceeded, Unavailable)):
        _play(world, core.stream(_policy(max_retries=10**6), StreamState(), {"prompt": "hi"}, key="k", limit_s=20))
    assert world.now <= 20


@pytest.mark.parametrize(("urls", "num_tries"), [(URLS[:1], 4), (URLS, 8)])
def test_a_client_that_never_reached_a_server_gives_up_within_a_second(urls: tuple[str, ...], num_tries: int) -> None:
    """The pauses are 0.1, 0.2 and 0.4 s with a quarter of jitter; the next one would end after a second."""
    for steps in (
        core.stream(Policy(Route(urls)), StreamState(), {"prompt": "hi"}, key="k"),
        core.ask(Policy(Route(urls)), "GET", "/x"),
    ):
        world = World(["refused"] * 1000)
        with pytest.raises(Unavailable, match=r"Cannot connect to http://a:1.*`penstock serve`") as failed:
            _play(world, steps)
        assert all(url in failed.value.message for url in urls)
        assert world.now <= 1
        assert len(world.sent) >= num_tries


def test_each_url_of_a_first_contact_is_tried_even_when_that_takes_long() -> None:
    """A time-out of connecting takes longer than all the patience there is."""
    budget = RetryBudget(8, 1e9, 3, reach_by=1.0)
    error = Unavailable("x")
    error.retryable = True
    assert budget.pause_s(error, 5.0, is_unreached=True) == 0
    assert budget.pause_s(error, 10.0, is_unreached=True) == 0
    with pytest.raises(Unavailable):
        budget.pause_s(error, 15.0, is_unreached=True)


@pytest.mark.parametrize("contact", [(503, {}, b""), "reset", 2.0])
def test_a_client_that_has_reached_a_server_keeps_its_patience(contact: Any) -> None:
    """It restarts, most likely: seven refusals in a row are no reason to give up."""
    world = World([contact, *["refused"] * 7])
    answer = _play(world, core.stream(Policy(Route(URLS[:1])), StreamState(), {"prompt": "hi"}, key="k"))
    assert answer.text == "".join(WORDS)
    assert world.now > 5


def test_one_object_for_another() -> None:
    world = World(["refused", _unavailable("2"), (200, {}, b'{"a": 1}')])
    assert _play(world, core.ask(_policy(), "POST", "/x", {"b": 2}, key="k")) == {"a": 1}
    assert [send.url for send in world.sent] == ["http://a:1/x", "http://b:2/x", "http://c:3/x"]
    assert world.pauses == []
    with pytest.raises(BackendError, match="not a JSON object"):
        _play(World([(200, {}, b"<html>")]), core.ask(_policy(), "GET", "/x"))


def test_one_server_that_asks_for_a_pause_gets_it() -> None:
    world = World([_unavailable("2"), (200, {}, b"{}")])
    _play(world, core.ask(Policy(Route(URLS[:1])), "GET", "/x"))
    assert 2 <= world.pauses[0] <= 2.3
    with pytest.raises(PenstockError):
        _play(World([_unavailable("3600")]), core.ask(Policy(Route(URLS[:1])), "GET", "/x"))


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "again"),
    [
        (429, {"retry-after-ms": "150", "retry-after": "1"}, b'{"error":{"code":"queue_full"}}', QueueFull, True),
        (404, {}, b'{"error":{"code":"request_not_found"}}', RequestNotFound, False),
        (400, {}, b'{"error":{"code":"invalid_request","param":"n"}}', InvalidRequest, False),
        (503, {}, b"<html>a proxy</html>", Unavailable, True),
        (502, {}, b"", Unavailable, True),
        (502, {"x-should-retry": "false"}, b"", Unavailable, False),
        (409, {"x-should-retry": "true"}, b'{"error":{"code":"what_is_new"}}', PenstockError, True),
        (418, {}, b"{}", InvalidRequest, False),
        (500, {}, b'{"error":"text"}', PenstockError, False),
    ],
)
def test_answers_that_are_none(
    status: int, headers: dict[str, str], body: bytes, kind: type[PenstockError], again: bool
) -> None:
    error = error_from_response(status, headers | {"x-request-id": "g.9"}, body, "http://a")
    assert isinstance(error, kind)
    assert error.retryable is again
    assert error.request_id == "g.9"
    assert error.retry_after_s == (0.15 if "retry-after-ms" in headers else None)
    assert error.status == status


def test_a_date_to_come_back_counts_from_the_servers_own_clock() -> None:
    headers = {"retry-after": "Wed, 25 Nov 2026 10:00:30 GMT", "date": "Wed, 25 Nov 2026 10:00:10 GMT"}
    assert error_from_response(503, headers, b"", "http://a").retry_after_s == 20
    assert error_from_response(503, {"retry-after": headers["retry-after"]}, b"", "http://a").retry_after_s is None
    assert error_from_response(503, {"retry-after": "nan"}, b"", "http://a").retry_after_s is None


def test_a_password_in_a_url_is_not_shown() -> None:
    route = Route(["http://me:secret@one:1/base"])
    with pytest.raises(Unavailable) as failed:
        _play(World(["refused"] * 9), core.ask(Policy(route, max_retries=0), "GET", "/x"))
    assert failed.value.message.startswith("Cannot connect to http://one:1/base: refused. ")
    with pytest.raises(Unavailable) as failed:
        _play(World(["reset"] * 9), core.ask(Policy(route, max_retries=0), "GET", "/x"))
    assert failed.value.message.startswith("http://one:1/base: ")
    with pytest.raises(ConfigError) as wrong:
        read_urls(["ftp://me:secret@one"])
    assert "secret" not in wrong.value.message
    assert "hello" not in repr(Send("POST", "http://one", {}, b"hello", 1))


def test_a_cancelled_request_is_an_error() -> None:
    end = {"request_id": "g.1", "model": "m", "finish_reason": "cancelled"}
    response: tuple[int, dict[str, str], bytes] = (
        200,
        {},
        _events(WORDS[:2]).partition(b"id: g.1/1-2\nevent: done")[0] + frame("done", json.dumps(end).encode()),
    )
    world = World([response])
    with pytest.raises(Cancelled) as cancelled:
        _play(world, core.stream(_policy(), StreamState(), {"prompt": "hi"}, key="k"))
    assert (world.given, cancelled.value.request_id) == (WORDS[:2], "g.1")


def test_the_id_is_known_from_the_head_unless_it_is_a_replay() -> None:
    for headers, known in (
        ({"x-request-id": "g.9"}, "g.9"),
        ({"x-request-id": "g.9", "idempotent-replayed": "true"}, ""),
    ):
        state = StreamState()
        steps = core.stream(_policy(max_retries=0), state, {"prompt": "hi"}, key="k")
        with pytest.raises(Unavailable):
            _play(World([(200, headers, b": keep-alive\n\n")]), steps)
        assert state.request_id == known


@given(st.binary(max_size=200), st.integers(300, 599))
def test_no_answer_surprises_it(body: bytes, status: int) -> None:
    assert isinstance(error_from_response(status, {}, body, "http://a"), PenstockError)


@given(st.integers(1, 3), st.integers(0, 2**32), st.lists(st.none() | st.floats(0, 60), min_size=1, max_size=8))
def test_pauses_are_bounded(num_urls: int, seed: int, asked: list[float | None]) -> None:
    budget = RetryBudget(8, 1e9, num_urls, rng=random.Random(seed))
    for number, retry_after_s in enumerate(asked, 1):
        pause = budget.pause_s(Unavailable("x", retry_after_s=retry_after_s), 0.0)
        if number < num_urls:
            assert pause == 0
        elif retry_after_s is None:
            assert 0 < pause <= 6.25
        else:
            assert retry_after_s <= pause <= 1.1 * retry_after_s + 0.05


def test_urls_and_keys_come_from_the_environment_when_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_URL", "http://one:1/, https://two/base/")
    monkeypatch.setenv("PENSTOCK_API_KEY", "secret")
    assert policy_of((), 1, 1, 1, 1).route.urls == ("http://one:1", "https://two/base")
    assert policy_of(("http://three",), 1, 1, 1, 1).route.urls == ("http://three",)
    assert headers_of(None)["authorization"] == "Bearer secret"
    assert "authorization" not in headers_of("")
    with pytest.raises(ConfigError):
        headers_of("line\nbreak")
    for bad in (
        "one two",
        "ftp://x",
        "http://",
        "http://x?a=b",
        "http://[::1",
        "http://x:99999",
        "http://x:a",
        "http://x/\x1b",
    ):
        with pytest.raises(ConfigError):
            read_urls([bad])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "localhost:24000",
            "'localhost:24000' is not an http:// or https:// URL of a server; write http://localhost:24000",
        ),
        ("one", "'one' is not an http:// or https:// URL of a server; write http://one"),
        ("me:secret@one:1/x", "'one:1/x' is not an http:// or https:// URL of a server; write http://one:1/x"),
        ("ftp://one", "'ftp://one' is not an http:// or https:// URL of a server"),
    ],
)
def test_a_wrong_url_is_shown_as_it_was_typed_and_without_a_password(typed: str, message: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        read_urls([typed])
    assert wrong.value.message == message


def test_a_url_may_end_as_other_tools_want_it() -> None:
    for url in ("http://one:1/v1", "http://one:1/v1/", " http://one:1/ "):
        assert read_urls([url]) == ("http://one:1",)
    assert read_urls(["http://one/api/v1"]) == ("http://one/api",)
    with pytest.raises(ConfigError, match="a URL is text, not a list; several are several arguments"):
        read_urls([["http://one"]])  # type: ignore[list-item]


def test_bodies() -> None:
    options: Options = {"max_tokens": 3, "stop": ("a", "b"), "model": None, "idempotency_key": "k"}
    assert body_of("hi", None, options) == {"prompt": "hi", "max_tokens": 3, "stop": ["a", "b"]}
    chat = body_of(None, [{"role": "user", "content": "x"}], {}, background=True)
    assert chat == {"messages": [{"role": "user", "content": "x"}], "background": True}
    world, answered = (
        World([(200, {}, b"{}")]),
        {"role": "assistant", "content": "", "tool_calls": (ToolCall(0, "c", "f"),)},
    )
    _play(world, core.ask(_policy(), "POST", "/x", body_of(None, [answered], {})))  # an answer's calls, as they came
    assert json.loads(world.sent[0].body or b"")["messages"][0]["tool_calls"] == [{"id": "c", "name": "f"}]
    with pytest.raises(InvalidRequest):
        body_of("hi", [], {})
    with pytest.raises(TypeError, match="max_token"):
        body_of("hi", None, {"max_token": 3})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match=r"no such option: n$"):
        body_of("hi", None, {"n": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize("messages", ["x", b"x", 5, {"role": "user", "content": "x"}])
def test_messages_that_are_not_a_list_are_refused_before_anything_is_sent(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="'messages' must be a list") as refused:
        body_of(None, messages, {})
    assert refused.value.param == "messages"


def test_an_answer_of_another_form_is_named() -> None:
    with pytest.raises(BackendError, match="is not an answer"):
        read_as({"text": 5}, Answer, "an answer")


def test_the_client_imports_nothing_of_a_server() -> None:
    code = (
        "import sys; from penstock import Client, AsyncClient; "
        "print([name for name in ('fastapi', 'starlette', 'uvicorn', 'hiredis', 'prometheus_client', 'pydantic', "
        "'typer', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
