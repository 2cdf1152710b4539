"""Parts of tool calls in every form that engines send them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.backends.openai.chunks import Chunks
from penstock.rich_token import ToolCall, call_id_of, join
from tests.unit.backends.openai.test_chunks import delta, failure_of, read


def part(arguments: Any = None, **fields: Any) -> dict[str, Any]:
    """`name` goes into the function, all other fields beside it."""
    function = {"name": fields.pop("name")} if "name" in fields else {}
    return fields | {"function": function | ({} if arguments is None else {"arguments": arguments})}


MINTED = [call_id_of("g.1", index) for index in range(3)]
TWO = [("c1", "f", '{"a": 1}'), ("c2", "g", '{"b": "é"}')]

FORMS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "the id in a part without a function": (
        [
            {"index": 0, "id": "c1", "type": "function"}, part('{"a": 1}', index=0, name="f"),
            {"index": 1, "id": "c2"}, part('{"b": "é"}', index=1, name="g"),
        ],
        TWO,
    ),
    "all index 0, new ids": (
        [part('{"a": 1}', index=0, id="c1", name="f"), part('{"b": "é"}', index=0, id="c2", name="g")],
        TWO,
    ),
    "all index 0, new ids, in pieces": (
        [
            part("", index=0, id="c1", name="f"), part('{"a"', index=0), part(": 1}", index=0),
            part("", index=0, id="c2", name="g"), part('{"b": ', index=0), part('"é"}', index=0),
        ],
        TWO,
    ),
    "all index 0, in turns by their ids": (
        [
            part('{"a"', index=0, id="c1", name="f"), part('{"b": ', index=0, id="c2", name="g"),
            part(": 1}", index=0, id="c1"), part('"é"}', index=0, id="c2"),
        ],
        TWO,
    ),
    "all index 0, no ids": (
        [part('{"a": 1}', index=0, name="f"), part('{"b": "é"}', index=0, name="g")],
        [(MINTED[0], *TWO[0][1:]), (MINTED[1], *TWO[1][1:])],
    ),
    "all index 0, empty ids, one name": (
        [part('{"a": 1}', index=0, id="", name="f"), part('{"a": 1}', index=0, id="", name="f")],
        [(MINTED[0], "f", '{"a": 1}'), (MINTED[1], "f", '{"a": 1}')],
    ),
    "index from 1": (
        [part('{"a": 1}', index=1, id="c1", name="f"), part('{"b": "é"}', index=2, id="c2", name="g")],
        TWO,
    ),
    "index from 1, in turns": (
        [
            part("", index=1, id="c1", name="f"), part("", index=2, id="c2", name="g"),
            part('{"a": 1}', index=1), part('{"b": "é"}', index=2),
        ],
        TWO,
    ),
    "no index, ids": ([part('{"a": 1}', id="c1", name="f"), part('{"b": "é"}', id="c2", name="g")], TWO),
    "no index, no ids, in pieces": (
        [part("", name="f"), part('{"a": '), part("1}"), part('{"b": "é"}', name="g")],
        [(MINTED[0], *TWO[0][1:]), (MINTED[1], *TWO[1][1:])],
    ),
    "null index": ([part('{"a": 1}', index=None, id="c1", name="f"), part('{"b": "é"}', index=None, id="c2", name="g")],
                   TWO),
    "id and name in every part": (
        [part('{"a"', index=0, id="c1", name="f"), part(": 1", index=0, id="c1", name="f"),
         part("}", index=0, id="c1", name="f")],
        TWO[:1],
    ),
    "name in every part, no ids": (
        [part("", index=0, name="f"), part('{"a"', index=0, name="f"), part(": 1}", index=0, name="f")],
        [(MINTED[0], "f", '{"a": 1}')],
    ),
    "a new id with each piece of the arguments": (
        [part("", index=0, id="r1", name="f"), part('{"a"', index=0, id="r2"), part(": 1}", index=0, id="r3")],
        [("r1", "f", '{"a": 1}')],
    ),
    "the whole call once more at its end": (
        [part('{"a"', index=0, id="c1", name="f"), part(": 1}", index=0), part('{"a": 1}', index=0, id="c1", name="f")],
        TWO[:1],
    ),
    "one id for two calls": (
        [part('{"a": 1}', index=0, id="c1", name="f"), part('{"b": "é"}', index=1, id="c1", name="g")],
        [TWO[0], (MINTED[1], *TWO[1][1:])],
    ),
    "a number as id": ([part('{"a": 1}', index=0, id=7, name="f")], [("7", "f", '{"a": 1}')]),
    "the name after the id": (
        [{"index": 0, "id": "c1", "function": None}, part('{"a": 1}', index=0, name="f")],
        TWO[:1],
    ),
    "function null": (
        [part('{"a": 1}', index=0, id="c1", name="f"), {"index": 0, "id": None, "function": None}],
        TWO[:1],
    ),
    "an empty part": ([{"index": 0, "function": None}], []),
    "an object": ([part({"a": 1}, index=0, id="c1", name="f")], [("c1", "f", '{"a":1}')]),
    "an empty object": ([part({}, index=0, id="c1", name="f")], [("c1", "f", "{}")]),
    "null": ([{"index": 0, "id": "c1", "function": {"name": "f", "arguments": None}}], [("c1", "f", "{}")]),
    "the text null": ([part("null", index=0, id="c1", name="f")], [("c1", "f", "{}")]),
    "blank": ([part("", index=0, id="c1", name="f"), part("", index=1, id="c2", name="g")],
              [("c1", "f", "{}"), ("c2", "g", "{}")]),
    "none at all": ([part(None, index=0, id="c1", name="f")], [("c1", "f", "{}")]),
}  # fmt: skip


@pytest.mark.parametrize("is_together", [False, True])
@pytest.mark.parametrize(("parts", "calls"), FORMS.values(), ids=FORMS.keys())
def test_every_form_of_calls(parts: list[Any], calls: list[tuple[str, str, str]], is_together: bool) -> None:
    said = [delta(tool_calls=parts)] if is_together else [delta(tool_calls=[one]) for one in parts]
    tokens, finish = read(*said, delta("stop"), chunks=Chunks("up", request_id="g.1"))
    assert join(tokens).tool_calls == tuple(ToolCall(index, *call) for index, call in enumerate(calls))
    assert finish.reason == ("tool_calls" if calls else "stop")
    streamed = [part for token in tokens if not isinstance(token, str) for part in token.tool_calls]
    firsts = [part for part in streamed if part.id]
    assert [(part.id, part.name) for part in firsts] == [call[:2] for call in calls]  # both at once, and only once
    assert all(not part.name for part in streamed if not part.id)


def test_the_same_ids_are_made_by_every_attempt() -> None:
    said = [delta(tool_calls=[part("{}", index=0, name="f")]), delta("tool_calls")]
    first, second = (read(*said, chunks=Chunks("up", request_id="g.1"))[0] for _ in range(2))
    assert first == second
    assert first != read(*said, chunks=Chunks("up", request_id="g.2"))[0]


def test_the_old_function_call_is_a_tool_call() -> None:
    tokens, finish = read(
        delta(function_call={"name": "f", "arguments": ""}),
        delta("function_call", function_call={"arguments": '{"a": 1}'}),
        chunks=Chunks("up", request_id="g.1"),
    )
    assert join(tokens).tool_calls == (ToolCall(0, MINTED[0], "f", '{"a": 1}'),)
    assert finish.reason == "tool_calls"


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_call_that_was_cut_off_is_not_completed(reason: str) -> None:
    tokens, finish = read(delta(reason, tool_calls=[part("", index=0, id="c1", name="f")]))
    assert join(tokens).tool_calls == (ToolCall(0, "c1", "f", ""),)
    assert finish.reason == reason


def test_a_broken_call_with_stop_stays_a_stop() -> None:
    assert read(delta("stop", tool_calls=[part('{"a', index=0, id="c1", name="f")]))[1].reason == "stop"


@pytest.mark.parametrize(
    "parts",
    [
        [part('{"a": 1}', index=0, id="c1")],
        [part("{}", index=-1, name="f")],
        [part("{}", name=["f"])],
        [part("{}", name=f"f{number}") for number in range(1025)],
    ],
)
def test_what_is_not_a_call_is_malformed(parts: list[Any]) -> None:
    assert failure_of(delta(tool_calls=parts), delta("stop")).reason == "malformed"


# ── streams of engines, written from their documents ─────────────────────────────────────────────────────────────

RECORDED: dict[str, tuple[str, tuple[ToolCall, ...], str, str]] = {
    "vLLM": (
        """
{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"q","choices":[{"index":0,\
"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}
{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"reasoning_content":"The user wants"},"finish_reason":null}]}
{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"tool_calls":[{"id":"chatcmpl-tool-a","type":"function",\
"index":0,"function":{"name":"f"}}]},"finish_reason":null}]}
{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,\
"function":{"arguments":"{\\"a\\": "}}]},"finish_reason":null}]}
{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]},\
"finish_reason":null}]}
{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop","stop_reason":null}]}
{"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3}}
[DONE]""",
        (ToolCall(0, "chatcmpl-tool-a", "f", '{"a": 1}'),),
        "",
        "The user wants",
    ),
    "SGLang": (
        """
{"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"",\
"reasoning_content":null,"tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}]}
{"id":"1","choices":[{"index":0,"delta":{"role":null,"content":null,"reasoning_content":null,\
"tool_calls":[{"id":"call_1","index":0,"type":"function","function":{"name":"f","arguments":""}}]},\
"finish_reason":null}]}
{"id":"1","choices":[{"index":0,"delta":{"role":null,"content":null,"tool_calls":[{"id":null,"index":0,\
"type":"function","function":{"name":null,"arguments":"{\\"a\\": 1}"}}]},"finish_reason":null}]}
{"id":"1","choices":[{"index":0,"delta":{"tool_calls":null},"finish_reason":"tool_calls","matched_stop":null}]}
[DONE]""",
        (ToolCall(0, "call_1", "f", '{"a": 1}'),),
        "",
        "",
    ),
    "llama.cpp": (
        """
{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1,\
"id":"chatcmpl-x","model":"m","system_fingerprint":"b1","object":"chat.completion.chunk"}
{"choices":[{"finish_reason":null,"index":0,"delta":{"tool_calls":[{"index":0,"id":"Ab1","type":"function",\
"function":{"name":"f","arguments":"{"}}]}}]}
{"choices":[{"finish_reason":null,"index":0,"delta":{"tool_calls":[{"index":0,\
"function":{"arguments":"\\"a\\": 1}"}}]}}]}
{"choices":[{"finish_reason":"tool_calls","index":0,"delta":{}}],"usage":{"completion_tokens":3,\
"prompt_tokens":9,"total_tokens":12},"timings":{"prompt_n":9}}
[DONE]""",
        (ToolCall(0, "Ab1", "f", '{"a": 1}'),),
        "",
        "",
    ),
    "Ollama": (
        """
{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"q","system_fingerprint":"fp_ollama",\
"choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":"call_a","index":0,\
"type":"function","function":{"name":"f","arguments":"{\\"a\\":1}"}}]},"finish_reason":null}]}
{"id":"chatcmpl-7","choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":"call_b",\
"index":0,"type":"function","function":{"name":"g","arguments":"{}"}}]},"finish_reason":null}]}
{"id":"chatcmpl-7","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}
[DONE]""",
        (ToolCall(0, "call_a", "f", '{"a":1}'), ToolCall(1, "call_b", "g", "{}")),
        "",
        "",
    ),
    "TGI": (
        """
{"object":"chat.completion.chunk","id":"","created":1,"model":"m","system_fingerprint":"3",\
"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"0","type":"function",\
"function":{"name":"f","arguments":""}}]},"logprobs":null,"finish_reason":null}],"usage":null}
{"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"","type":"function",\
"function":{"name":null,"arguments":"{\\"a\\": 1}"}}]},"logprobs":null,"finish_reason":null}],"usage":null}
{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":"eos_token"}],\
"usage":null}
[DONE]""",
        (ToolCall(0, "0", "f", '{"a": 1}'),),
        "",
        "",
    ),
    "Gemini": (
        """
{"choices":[{"delta":{"role":"assistant","tool_calls":[{"function":{"arguments":"{\\"a\\":1}","name":"f"},\
"id":"","index":0,"type":"function"}]},"index":0}],"created":1,"model":"gemini",\
"object":"chat.completion.chunk"}
{"choices":[{"delta":{"role":"assistant","tool_calls":[{"function":{"arguments":"{\\"a\\":2}","name":"f"},\
"id":"","index":0,"type":"function"}]},"index":0}]}
{"choices":[{"delta":{"role":"assistant"},"finish_reason":"stop","index":0}],"usage":{"completion_tokens":3,\
"prompt_tokens":9,"total_tokens":12}}
[DONE]""",
        (ToolCall(0, MINTED[0], "f", '{"a":1}'), ToolCall(1, MINTED[1], "f", '{"a":2}')),
        "",
        "",
    ),
    "Mistral": (
        """
{"id":"x","object":"chat.completion.chunk","created":1,"model":"magistral","choices":[{"index":0,\
"delta":{"role":"assistant","content":""},"finish_reason":null}]}
{"id":"x","choices":[{"index":0,"delta":{"content":[{"type":"thinking","thinking":[{"type":"text",\
"text":"Hm"}]}]},"finish_reason":null}]}
{"id":"x","choices":[{"index":0,"delta":{"content":[{"type":"text","text":"Yes"},{"type":"reference",\
"reference_ids":[1]}]},"finish_reason":null}]}
{"id":"x","choices":[{"index":0,"delta":{"content":"","tool_calls":[{"id":"D6","function":{"name":"f",\
"arguments":"{\\"a\\": 1}"},"index":0}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":9,\
"total_tokens":12,"completion_tokens":3}}
[DONE]""",
        (ToolCall(0, "D6", "f", '{"a": 1}'),),
        "Yes",
        "Hm",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "calls", "text", "reasoning"), RECORDED.values(), ids=RECORDED.keys())
def test_the_stream_of_an_engine(stream: str, calls: tuple[ToolCall, ...], text: str, reasoning: str) -> None:
    tokens, finish = read(*stream.strip().split("\n"), chunks=Chunks("up", request_id="g.1"))
    whole = join(tokens)
    assert (whole.tool_calls, whole.text, whole.reasoning) == (calls, text, reasoning)
    assert finish.reason == "tool_calls"
    assert all(isinstance(json.loads(call.arguments), dict) for call in whole.tool_calls)


def test_a_part_that_is_not_in_a_list_is_read_and_what_is_not_a_part_is_a_fault() -> None:
    """Never dropped: the answer would seem to call no tool."""
    alone = part('{"a": 1}', index=0, id="c1", name="f")
    tokens = read(delta(tool_calls=alone), delta("tool_calls"), "[DONE]")[0]
    assert join(tokens).tool_calls == (ToolCall(0, "c1", "f", '{"a": 1}'),)
    assert failure_of(delta(tool_calls="x"), delta("stop")).reason == "malformed"
