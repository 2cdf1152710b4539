"""The corpus of malformed bodies: what a client can send wrong to `POST /v1/generate`, and the status that it gets.

`tests/unit/http/test_body.py` feeds it to the parser, and a process test to real servers. A case with a status of 400
or above must be refused with exactly that, in the one envelope; one with 200 looks odd and is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

JSON = {"content-type": "application/json"}
MAX_BODY_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """`param` is the field that the error must name; None where the case does not say."""

    name: str
    body: bytes
    status: int = 400
    param: str | None = None
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


def _prompt(value: bytes, more: bytes = b"") -> bytes:
    return b'{"prompt":' + value + b',"max_tokens":1' + more + b"}"


def _nested(levels: int, opening: bytes, inner: bytes, closing: bytes) -> bytes:
    return opening * levels + inner + closing * levels


FORM = {"content-type": "application/x-www-form-urlencoded"}

NOT_JSON = [
    Case("empty", b""),
    Case("only white space", b" \r\n\t "),
    Case("not JSON at all", b"prompt=hello"),
    Case("cut off in an object", b'{"prompt": "a"'),
    Case("cut off in a string", b'{"prompt": "a'),
    Case("cut off in an escape", b'{"prompt": "\\u00'),
    Case("a second value behind", b'{"prompt":"a"}{"prompt":"b"}'),
    Case("a comma too many", b'{"prompt":"a",}'),
    Case("single quotes", b"{'prompt':'a'}"),
    Case("a comment", b'{"prompt":"a" /* x */}'),
    Case("a leading zero", _prompt(b'"a"', b',"seed":01')),
    Case("a plus sign", _prompt(b'"a"', b',"seed":+1')),
    Case("hexadecimal", _prompt(b'"a"', b',"seed":0x10')),
    Case("an unknown escape", _prompt(b'"\\x41"')),
    Case("a raw newline in a string", _prompt(b'"a\nb"')),
    Case("a raw control character", _prompt(b'"a\x01b"')),
    Case("a raw NUL", _prompt(b'"a\x00b"')),
    Case("NUL behind the end", b'{"prompt":"a"}\x00'),
    Case("a byte order mark", b"\xef\xbb\xbf" + _prompt(b'"a"')),
    Case("UTF-16", '{"prompt":"a"}'.encode("utf-16")),
    Case("UTF-32", '{"prompt":"a"}'.encode("utf-32-be")),
    Case("Latin-1", _prompt('"é"'.encode("latin-1"))),
    Case("an overlong encoding", _prompt(b'"\xc0\xaf"')),
    Case("a surrogate in UTF-8", _prompt(b'"\xed\xa0\x80"')),
    Case("beyond Unicode", _prompt(b'"\xf4\x90\x80\x80"')),
    Case("a character cut off", _prompt(b'"\xe2\x82"')),
    Case("pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07"),
    Case("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"),
]

NOT_AN_OBJECT = [
    Case("an array", b'[{"prompt":"a"}]'),
    Case("a string", b'"hello"'),
    Case("a number", b"1"),
    Case("null", b"null"),
    Case("true", b"true"),
]

BAD_VALUES = [
    Case("NaN", _prompt(b'"a"', b',"temperature":NaN'), param="temperature"),
    Case("Infinity", _prompt(b'"a"', b',"temperature":Infinity'), param="temperature"),
    Case("-Infinity", _prompt(b'"a"', b',"top_p":-Infinity'), param="top_p"),
    Case("1e999", _prompt(b'"a"', b',"temperature":1e999'), param="temperature"),
    Case("-1e999", _prompt(b'"a"', b',"seed":-1e999'), param="seed"),
    Case("5,000 digits", _prompt(b'"a"', b',"seed":' + b"9" * 5000), param="seed"),
    Case("4,000 negative digits", _prompt(b'"a"', b',"seed":-' + b"9" * 4000), param="seed"),
    Case("20 digits", _prompt(b'"a"', b',"max_tokens":' + b"1" * 20)),
    Case("a lone high surrogate", _prompt(b'"\\ud800"'), param="prompt"),
    Case("a lone low surrogate", _prompt(b'"a\\udc00b"'), param="prompt"),
    Case("surrogates in the wrong order", _prompt(b'"\\udc00\\ud800"'), param="prompt"),
    Case("a lone surrogate in a key", b'{"prompt":"a","\\ud800":1}'),
    Case(
        "a lone surrogate deep down", b'{"messages":[{"role":"user","content":"\\udfff"}]}', param="messages.0.content"
    ),
    Case("a duplicate key", b'{"prompt":"a","prompt":"b"}', param="prompt"),
    Case("the same key, escaped", b'{"prompt":"a","pr\\u006fmpt":"b"}', param="prompt"),
    Case(
        "a duplicate key deep down",
        b'{"messages":[{"role":"user","role":"user","content":"a"}]}',
        param="messages.0.role",
    ),
]

TOO_DEEP = [
    Case("200 arrays", _prompt(_nested(200, b"[", b"1", b"]"))),
    Case("200 objects", _prompt(_nested(200, b'{"a":', b"1", b"}"))),
    Case("100,000 arrays, never closed", b"[" * 100_000),
    Case("100,000 objects, never closed", b'{"a":' * 100_000),
    Case("200,000 brackets, closed at once", b"[]" * 200_000),
]

BAD_FIELDS = [
    Case("no prompt", b'{"max_tokens":1}'),
    Case("an empty object", b"{}"),
    Case("an empty prompt", _prompt(b'""'), param="prompt"),
    Case("a prompt that is a number", _prompt(b"1"), param="prompt"),
    Case("a prompt that is null", _prompt(b"null")),
    Case("a prompt that is an array", _prompt(b'["a"]'), param="prompt"),
    Case("prompt and messages", b'{"prompt":"a","messages":[{"role":"user","content":"a"}]}'),
    Case("no messages", b'{"messages":[]}', param="messages"),
    Case("messages that are a string", b'{"messages":"a"}', param="messages"),
    Case("a message that is a string", b'{"messages":["a"]}', param="messages.0"),
    Case("a message without content", b'{"messages":[{"role":"user"}]}', param="messages.0.content"),
    Case("an unknown role", b'{"messages":[{"role":"root","content":"a"}]}', param="messages.0.role"),
    Case("an unknown field", _prompt(b'"a"', b',"foo":1'), param="foo"),
    Case("an unknown field of a message", b'{"messages":[{"role":"user","content":"a","x":1}]}', param="messages.0.x"),
    Case("a field with NUL", b'{"prompt":"a","x\\u0000":1}'),
    Case("a field with CR LF", b'{"prompt":"a","x\\r\\nset-cookie: a":1}'),
    Case("a field of 100 kB", b'{"prompt":"a","' + b"x" * 100_000 + b'":1}'),
    Case("__proto__", b'{"prompt":"a","__proto__":{}}', param="__proto__"),
    Case("__class__", b'{"prompt":"a","__class__":"os.system"}', param="__class__"),
    Case("max_tokens 0", b'{"prompt":"a","max_tokens":0}', param="max_tokens"),
    Case("max_tokens -2", b'{"prompt":"a","max_tokens":-2}', param="max_tokens"),
    Case("max_tokens 10^12", b'{"prompt":"a","max_tokens":1000000000000}', param="max_tokens"),
    Case("max_tokens 1.5", b'{"prompt":"a","max_tokens":1.5}', param="max_tokens"),
    Case("max_tokens as a string", b'{"prompt":"a","max_tokens":"1"}', param="max_tokens"),
    Case("max_tokens true", b'{"prompt":"a","max_tokens":true}', param="max_tokens"),
    Case("temperature -1", _prompt(b'"a"', b',"temperature":-1'), param="temperature"),
    Case("temperature 1e308", _prompt(b'"a"', b',"temperature":1e308'), param="temperature"),
    Case("top_p 2", _prompt(b'"a"', b',"top_p":2'), param="top_p"),
    Case("33 stops", _prompt(b'"a"', b',"stop":[' + b",".join([b'"a"'] * 33) + b"]"), param="stop"),
    Case("an empty stop", _prompt(b'"a"', b',"stop":""'), param="stop"),
    Case("a stop that is a number", _prompt(b'"a"', b',"stop":["a",1]'), param="stop.1"),
    Case("a model that is an object", _prompt(b'"a"', b',"model":{"$ne":null}'), param="model"),
    Case("stream as a string", _prompt(b'"a"', b',"stream":"true"'), param="stream"),
    Case("timeout_s 0", _prompt(b'"a"', b',"timeout_s":0'), param="timeout_s"),
]

BAD_MODEL = [
    Case("an unknown model", _prompt(b'"a"', b',"model":"no-such-model"'), 404),
    Case("a model with a path", _prompt(b'"a"', b',"model":"../../etc/passwd"'), 404),
    Case("a model with a URL", _prompt(b'"a"', b',"model":"http://169.254.169.254/"'), 404),
    Case("a model with a label", _prompt(b'"a"', b',"model":"a\\",outcome=\\"b"'), 404),
]

BAD_ENVELOPES = [
    Case("too large", _prompt(b'"' + b"a" * (MAX_BODY_BYTES + 1) + b'"'), 413),
    Case("too large, and not JSON", b"x" * (MAX_BODY_BYTES + 1), 413),
    Case("a form", b"prompt=a", 415, headers=FORM),
    Case("JSON called text", _prompt(b'"a"'), 415, headers={"content-type": "text/plain"}),
    Case("JSON called nothing", _prompt(b'"a"'), 415, headers={}),
    Case("a media type that begins like JSON", _prompt(b'"a"'), 415, headers={"content-type": "application/jsonx"}),
    Case("Latin-1 by its charset", _prompt(b'"a"'), 415, headers={"content-type": "application/json; charset=latin-1"}),
    Case("said to be compressed", _prompt(b'"a"'), 415, headers=JSON | {"content-encoding": "gzip"}),
]

# Odd, and right: a refusal of these would be a bug.
ODD_BUT_RIGHT = [
    Case("white space around", b" \r\n" + _prompt(b'"a"') + b"\n", 200),
    Case("a surrogate pair", _prompt(b'"\\ud83d\\ude00"'), 200),
    Case("an escaped NUL", _prompt(b'"a\\u0000b"'), 200),
    Case("an escaped NUL in a key", _prompt(b'"a"', b',"metadata":{"a\\u0000":"\\u0000"}'), 200),
    Case("brackets in a string", _prompt(b'"' + b"[{" * 200 + b'"'), 200),
    Case("quotes and brackets in a string", _prompt(b'"' + b'\\"[' * 200 + b'"'), 200),
    Case("a backslash before the quote", _prompt(b'"[[[\\\\"'), 200),
    Case("right-to-left and zero-width", _prompt('"\u202e\u200b\u2028"'.encode()), 200),
    Case("a long exponent of zero", _prompt(b'"a"', b',"temperature":0e999'), 200),
    Case("utf-8 by its charset", _prompt(b'"a"'), 200, headers={"content-type": 'Application/JSON; charset="UTF-8"'}),
    Case(
        "an id with CR LF in it, escaped", _prompt(b'"a"'), 200, headers=JSON | {"x-request-id": "a%0d%0aset-cookie:b"}
    ),
]

PARSER = NOT_JSON + NOT_AN_OBJECT + BAD_VALUES + TOO_DEEP
REFUSED = PARSER + BAD_FIELDS + BAD_MODEL + BAD_ENVELOPES
CORPUS = REFUSED + ODD_BUT_RIGHT
