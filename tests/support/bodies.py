"""Bodies as large as a gateway takes, made to keep its event loop busy: hostile ones, and valid ones at every limit.

A `Shape` repeats an item in one place of a body of one API. It is sent full (as many items as fit into the size), at
the limit of values, and as the largest that is still read on the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.http.body_json import MAX_VALUES, num_marks
from penstock.http.large_bodies import LARGE_BYTES, LARGE_VALUES

MAX_BYTES = 2**20


@dataclass(frozen=True)
class Shape:
    """`item` may hold `%d`, which counts up. `most`: how many the API allows, where the body shall be valid."""

    path: str
    name: str
    head: bytes
    item: bytes
    tail: bytes
    most: int = MAX_BYTES

    def body(self, max_bytes: int, max_values: int) -> bytes:
        """As many items as fit, and blanks up to the size."""
        is_counted = b"%d" in self.item
        size = len(self.item) + (5 if is_counted else 1)
        marks = num_marks(self.item) + 1
        num = min((max_bytes - len(self.head + self.tail)) // size, (max_values - 20) // marks, self.most)
        items = [self.item % i for i in range(num)] if is_counted else [self.item] * num
        return (self.head + b",".join(items) + self.tail).ljust(max_bytes)


def bodies(shapes: list[Shape]) -> Iterator[tuple[str, str, bytes]]:
    """The path, a name and the body."""
    for shape in shapes:
        yield shape.path, f"{shape.name}, full", shape.body(MAX_BYTES, MAX_BYTES)
        yield shape.path, f"{shape.name}, at the limit of values", shape.body(MAX_BYTES, MAX_VALUES)
        yield shape.path, f"{shape.name}, on the loop", shape.body(LARGE_BYTES, LARGE_VALUES)


def _wide(opening: bytes, item: bytes, num: int, closing: bytes) -> bytes:
    return opening + b",".join([item] * num) + closing


GENERATE, CHAT, COMPLETIONS = "/v1/generate", "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES, MESSAGES = "/v1/embeddings", "/v1/responses", "/v1/messages"
TOKENIZE, DETOKENIZE, RERANK, SCORE = "/tokenize", "/detokenize", "/v1/rerank", "/v1/score"

_TURN = b'{"role":"user","content":"x"}'
_CHAT = b'{"max_tokens":1,"messages":[' + _TURN + b"],"
_TEXT = b'{"type":"text","text":"a"}'
_IMAGE = b'{"type":"image_url","image_url":{"url":"a"}}'
_CALL = b'{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}'
_OWN_CALL = b'{"id":"a","name":"f","arguments":"{}"}'
_TOOL = b'{"type":"function","function":{"name":"f","parameters":{'
_LOGPROB = b'{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}'


def _turn(role: bytes, field: bytes, item: bytes, num: int) -> bytes:
    return _wide(b'{"role":"%b","%b":[' % (role, field), item, num, b"]}")


def _everywhere(path: str, head: bytes) -> list[Shape]:
    """What can be sent to any API. `head`: a body with its required fields, left open."""
    return [
        Shape(path, "unknown fields", head, b'"k%d":1', b"}"),
        Shape(path, "one unknown field of objects", head + b'"x":[', b"{}", b"]}"),
        Shape(path, "model that is an object", head + b'"model":{', b'"k%d":1', b"}}"),
    ]


_PARSED = [
    Shape(GENERATE, "numbers", b'{"x":[', b"0", b"]}"),
    Shape(GENERATE, "long numbers", b'{"x":[', b"0." + b"1" * 200_000, b"]}"),
    Shape(GENERATE, "deep objects", b'{"x":[', b'{"a":[[[{"b":[]}]]]}', b"]}"),
    Shape(GENERATE, "a bad number behind many", b'{"x":[', b"0", b",NaN]}"),
    Shape(GENERATE, "a key given twice", b"{", b'"k%d":1', b',"k0":1}'),
    Shape(GENERATE, "escapes, and half a pair behind them", b'{"x":[', b'"\\u00e9"', b',"\\ud800"]}'),
    Shape(GENERATE, "no JSON behind much of it", b'{"x":[', b'"a"', b"]"),
]


def _conversation(path: str) -> list[Shape]:
    """What can be sent to an API that takes a conversation in the form of chat completions."""
    return [
        Shape(path, "text", b'{"max_tokens":1,"messages":[', _turn(b"user", b"content", _TEXT, 7), b"]}", 1000),
        Shape(path, "images", b'{"max_tokens":1,"messages":[', _turn(b"user", b"content", _IMAGE, 7), b"]}", 1000),
        Shape(path, "bad parts", b'{"messages":[', _turn(b"user", b"content", b'{"type":"x"}', 40), b"]}", 1000),
        Shape(path, "worse parts", b'{"messages":[', _turn(b"user", b"content", b"0", 100), b"]}", 1000),
        Shape(path, "wide parts", b'{"messages":[{"role":"user","content":[{"type":"text",', b'"k%d":1', b"}]}]}", 998),
        Shape(path, "calls", b'{"messages":[', _turn(b"assistant", b"tool_calls", _CALL, 9), b"]}", 1000),
        Shape(path, "bad calls", b'{"messages":[', _turn(b"assistant", b"tool_calls", b"{}", 128), b"]}", 1000),
        Shape(path, "metadata", _CHAT + b'"metadata":{', b'"k%d":1', b"}}", 1000),
        Shape(path, "logit_bias", _CHAT + b'"logit_bias":{', b'"%d":1', b"}}", 300),
        Shape(path, "a bad logit_bias", _CHAT + b'"logit_bias":{', b'"%d":[]', b"}}", 1000),
        Shape(path, "bad tools", _CHAT + b'"tools":[', b"{}", b"]}"),
        Shape(path, "a wide schema", _CHAT + b'"tools":[' + _TOOL, b'"k%d":{"type":"string"}', b"}}}]}", 1000),
        Shape(path, "a long schema", _CHAT + b'"tools":[' + _TOOL + b'"enum":[', b'"a"', b"]}}}]}"),
        Shape(path, "a deep schema", _CHAT + b'"tools":[' + _TOOL + b'"a":[', b'{"a":[[{"b":[]}]]}', b"]}}}]}"),
        Shape(
            path,
            "a response_format",
            _CHAT + b'"response_format":{"type":"json_schema","json_schema":{"a":[',
            b'{"a":1}',
            b"]}}}",
        ),
    ]


SHAPES = {
    "generate": [
        *_PARSED,
        *_everywhere(GENERATE, b'{"prompt":"x",'),
        Shape(GENERATE, "stop that is numbers", b'{"prompt":"x","stop":[', b"0", b"]}"),
        Shape(GENERATE, "a long prompt", b'{"max_tokens":1,"prompt":"', b"a" * 1000, b'"}'),
        Shape(GENERATE, "an escaped prompt", b'{"max_tokens":1,"prompt":"', b"\\u00e9\\n" * 100, b'"}'),
        Shape(GENERATE, "messages", b'{"max_tokens":1,"messages":[', _TURN, b"]}", 1000),
        Shape(GENERATE, "bad messages", b'{"messages":[', b"{}", b"]}"),
        Shape(GENERATE, "bad messages, not too many", b'{"messages":[', b"{}", b"]}", 1000),
        Shape(GENERATE, "unknown fields of a message", b'{"messages":[{"role":"user",', b'"k%d":1', b"}]}"),
    ],
    "a conversation to generate": [
        *_conversation(GENERATE),
        Shape(GENERATE, "own calls", b'{"messages":[', _turn(b"assistant", b"tool_calls", _OWN_CALL, 9), b"]}", 1000),
        Shape(
            GENERATE,
            "bad own calls",
            b'{"messages":[',
            _turn(b"assistant", b"tool_calls", b'{"id":"a"}', 128),
            b"]}",
            1000,
        ),
    ],
    "chat": [
        *_everywhere(CHAT, _CHAT),
        *_conversation(CHAT),
    ],
    "completions": [
        *_everywhere(COMPLETIONS, b'{"prompt":"x",'),
        Shape(COMPLETIONS, "prompts", b'{"max_tokens":1,"prompt":[', b'"' + b"a" * 60_000 + b'"', b"]}", 16),
        Shape(COMPLETIONS, "sixteen answers", b'{"max_tokens":1,"n":16,"prompt":"', b"a" * 1000, b'"}'),
        Shape(COMPLETIONS, "many prompts", b'{"prompt":[', b'"a"', b"]}"),
        Shape(COMPLETIONS, "token ids", b'{"prompt":[', b"1", b"]}"),
    ],
    "embeddings": [
        *_everywhere(EMBEDDINGS, b'{"input":"x",'),
        Shape(EMBEDDINGS, "inputs", b'{"input":[', b'"' + b"a " * 2000 + b'"', b"]}", 256),
        Shape(EMBEDDINGS, "many inputs", b'{"input":[', b'"a"', b"]}"),
        Shape(EMBEDDINGS, "token ids", b'{"input":[', b"1", b"]}"),
        Shape(EMBEDDINGS, "lists of token ids", b'{"input":[', b"[1,2]", b"]}", 256),
        Shape(EMBEDDINGS, "a text behind token ids", b'{"input":[', b"1", b',"a"]}'),
    ],
    "tokens": [
        *_everywhere(TOKENIZE, b'{"prompt":"x",'),
        Shape(TOKENIZE, "a long prompt", b'{"prompt":"', b"hello there " * 100, b'"}'),
        Shape(TOKENIZE, "messages", b'{"messages":[', _TURN, b"]}", 1000),
        Shape(TOKENIZE, "a wide schema", b'{"messages":[' + _TURN + b'],"tools":[' + _TOOL, b'"k%d":1', b"}}}]}", 1000),
        Shape(DETOKENIZE, "tokens", b'{"tokens":[', b"1", b"]}"),
        Shape(DETOKENIZE, "no tokens", b'{"tokens":[', b"[]", b"]}"),
    ],
    "scores": [
        *_everywhere(RERANK, b'{"query":"x","documents":["x"],'),
        Shape(RERANK, "documents", b'{"query":"x","documents":[', b'"' + b"a " * 500 + b'"', b"]}", 1000),
        Shape(RERANK, "objects", b'{"query":"x","documents":[', b'{"text":"a b"}', b"]}", 1000),
        Shape(RERANK, "bad objects", b'{"query":"x","documents":[', b"{}", b"]}"),
        Shape(SCORE, "texts", b'{"text_1":"a","text_2":[', b'"a"', b"]}", 1000),
        Shape(SCORE, "numbers", b'{"text_1":"a","text_2":[', b"1", b"]}"),
    ],
    "responses": [
        *_everywhere(RESPONSES, b'{"input":"x",'),
        Shape(RESPONSES, "items", b'{"max_output_tokens":1,"input":[', _TURN, b"]}", 1000),
        Shape(
            RESPONSES,
            "text",
            b'{"max_output_tokens":1,"input":[',
            _turn(b"user", b"content", b'{"type":"input_text","text":"a"}', 7),
            b"]}",
            1000,
        ),
        Shape(RESPONSES, "bad items", b'{"input":[', b"{}", b"]}"),
        Shape(RESPONSES, "bad items, not too many", b'{"input":[', b"{}", b"]}", 1000),
        Shape(RESPONSES, "unknown fields of an item", b'{"input":[{"role":"user",', b'"k%d":1', b"}]}", 999),
        Shape(
            RESPONSES,
            "logprobs",
            b'{"max_output_tokens":1,"input":[' + _TURN + b',{"role":"assistant","content":[{"type":"output_text",'
            b'"text":"a","logprobs":[',
            _LOGPROB,
            b"]}]}]}",
        ),
        Shape(
            RESPONSES,
            "calls",
            b'{"max_output_tokens":1,"input":[' + _TURN + b",",
            b'{"type":"function_call","call_id":"a","name":"f","arguments":"{}"}',
            b"]}",
            999,
        ),
    ],
    "messages": [
        *_everywhere(MESSAGES, b'{"max_tokens":1,"messages":[' + _TURN + b"],"),
        Shape(MESSAGES, "text", b'{"max_tokens":1,"messages":[', _turn(b"user", b"content", _TEXT, 7), b"]}", 1000),
        Shape(
            MESSAGES,
            "bad blocks",
            b'{"max_tokens":1,"messages":[',
            _turn(b"user", b"content", b'{"type":"x"}', 40),
            b"]}",
            1000,
        ),
        Shape(
            MESSAGES,
            "tools used",
            b'{"max_tokens":1,"messages":[',
            _turn(b"assistant", b"content", b'{"type":"tool_use","id":"a","name":"f","input":{"a":[0,0,0,0]}}', 5),
            b"," + _TURN + b"]}",
            999,
        ),
        Shape(
            MESSAGES,
            "one tool's long input",
            b'{"max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":'
            b'{"a":[',
            b"{}",
            b"]}}]}," + _TURN + b"]}",
        ),
    ],
}
