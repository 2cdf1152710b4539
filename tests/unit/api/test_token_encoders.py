"""Each API writes the JSON of a usual token by hand: for any text it is what the slow form writes."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.anthropic import events as anthropic
from penstock.api.native import NativeResponse
from penstock.api.ollama.lines import Lines
from penstock.api.openai import completions
from penstock.api.openai.chat import ChatForm
from penstock.api.openai.completions import CompletionForm
from penstock.api.parts import Part
from penstock.api.responses.events import ResponseEvents
from penstock.gateway.relay import Reader, RelayStream, Turn
from penstock.job import Job, Message
from penstock.rich_token import Logprob, RichToken
from penstock.sse import Decoder, frame
from tests.support.answers import JOB_ID

JOB = Job(id=JOB_ID, model='m"', messages=(Message("user", "hi"),))
# Half of a surrogate pair is not a token: the worker refuses it.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/\b\f\n\r\t\x00\x7f\x85\u2028\u2029<&😀')
)
INDICES = st.integers(0, 10**6)


@given(TEXTS, INDICES)
def test_native_events(text: str, first: int) -> None:
    answer = object.__new__(NativeResponse)
    reader = Reader(RelayStream(JOB, None, 0.0), Turn())
    reader.stream.attempt = 7
    data = {"request_id": JOB_ID, "index": first, "text": text}
    slow = frame("token", msgspec.json.encode(data), f"{JOB_ID}/7-{first + 1}")
    assert answer.token_frames(reader, first, [text]) == [slow]
    assert answer.token_frames(reader, first, [RichToken(text=text)]) == [slow]


@given(TEXTS, st.integers(0, 9), st.booleans())
def test_chunks_of_chat_completions(text: str, index: int, includes_usage: bool) -> None:
    form = ChatForm(JOB_ID, JOB.model, 1, includes_usage=includes_usage)
    slow = form.chunk({"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None})
    assert form.token(index, text) == slow


@given(TEXTS, st.integers(0, 9), st.booleans())
def test_chunks_of_completions(text: str, index: int, includes_usage: bool) -> None:
    form = CompletionForm(JOB_ID, JOB.model, 1, includes_usage=includes_usage)
    assert form.token(index, text) == form.chunk(completions._choice(index, text, (), None))


@given(TEXTS, st.integers(0, 9))
def test_deltas_of_anthropics_messages(text: str, index: int) -> None:
    events, part = anthropic.MessageEvents(JOB), Part(index, "text")
    events.opened(part)
    data = {"index": index, "delta": {"type": "text_delta", "text": text}}
    assert events.grown(part, text, ()) == [anthropic._event("content_block_delta", data)]


@given(TEXTS, st.integers(0, 9), st.lists(st.builds(Logprob, TEXTS, st.floats(-9, 0)), max_size=2).map(tuple))
def test_deltas_of_openais_responses(text: str, index: int, logprobs: tuple[Logprob, ...]) -> None:
    fast, slow = ResponseEvents(JOB), ResponseEvents(JOB)
    part = Part(index, "text")
    for events in (fast, slow):
        events.opened(part)
    (written,) = fast.grown(part, text, logprobs)
    data = slow._place(part) | {"delta": text, "logprobs": [one.as_openai() for one in logprobs]}
    expected = slow._event("response.output_text.delta", data)
    (got,), (wanted,) = Decoder().feed(written), Decoder().feed(expected)
    assert (got.event, json.loads(got.data)) == (wanted.event, json.loads(wanted.data))
    assert fast.num == slow.num


@given(TEXTS, st.booleans())
def test_lines_of_ollama(text: str, is_chat: bool) -> None:
    lines = Lines(JOB, is_chat=is_chat)
    assert lines.grown(Part(0, "text"), text, ()) == [lines._line({"content": text})]
