"""The text of a log line, without prompts and secrets: JSON for machines, short text for people. Pure.

Text from a client can neither break a line nor forge one, and fields that hold prompts or secrets are hidden. Knows
nothing of where lines go.
"""

from __future__ import annotations

import logging
import re
import time
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import unquote

import msgspec

MAX_FIELD = 16 * 1024
HIDDEN = "[hidden]"

# The request that the current task is about; every line that it logs names it.
request_id: ContextVar[str] = ContextVar("penstock_request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "request_id"}
_NUM_OWN = len(vars(logging.makeLogRecord({})))  # a record's own attributes come first, the caller's behind them
_SECRET = frozenset({"prompt", "messages", "authorization", "api_key", "password", "secret", "x_api_key"})
_PASSWORD_IN_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/@]{0,512}@")
_INPUT = re.compile(r"input_value=.*, input_type=")  # pydantic quotes what it refuses: a part of a prompt
# Characters that a reader may interpret as an end of line or as a command to a terminal, and JSON does not escape.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_UNSAFE_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
# The same without line feeds and tabs, which a text may have.
_UNSAFE_PAGE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", "request_id"?, extra fields…, "exception"?}`, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = make_line(record.created, record.levelname, _name(record), _message(record), _bound(record))
        add_fields(line, _given(record))
        if exception := _exception(self, record):
            line["exception"] = exception
        return encode(line)


def make_line(created: float, level: str, name: str, message: str, bound: str) -> dict[str, Any]:
    line = {"time": _iso(created), "level": level.lower(), "logger": name, "message": message}
    if bound:
        line["request_id"] = bound
    return line


def add_fields(line: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name != "request_id":
            line[name if name not in line else f"{name}_"] = _shown(name, value)


class TextFormatter(logging.Formatter):
    """`12:34:56.789 INFO worker: message key=value`; an exception follows, indented."""

    def __init__(self, is_coloured: bool = False) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        level = f"{record.levelname:<7}"
        if self._is_coloured:
            at, level = f"\x1b[2m{at}\x1b[0m", f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        fields = {name: _shown(name, value) for name, value in _given(record).items()}
        if bound := _bound(record):
            fields = {"request_id": bound} | fields
        text = " ".join([_message(record), *(f"{name}={_show(value)}" for name, value in fields.items())])
        line = f"{at} {level} {_name(record).removeprefix('penstock.')}: {_escape(text, _UNSAFE_TEXT)}"
        if exception := _exception(self, record):
            line += "".join(f"\n    {_escape(part, _UNSAFE_TEXT)}" for part in exception.split("\n"))
        return line


def printable(text: str) -> str:
    """Text of any number of lines, safe for a terminal: control characters are escaped, as in a log line."""
    return text if text.isascii() and text.isprintable() else _escape(text, _UNSAFE_PAGE)


def encode(line: dict[str, Any]) -> str:
    """One JSON object on one line, whatever the values are."""
    try:
        text = msgspec.json.encode(line, enc_hook=_text).decode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
        # Lone surrogates, keys that are not strings, integers beyond 64 bits, loops: rare, so the slow way.
        text = msgspec.json.encode({_clean(name): _clean(_text(value)) for name, value in line.items()}).decode()
    return text if text.isascii() else _escape(text, _UNSAFE)


def _escape(text: str, unsafe: re.Pattern[str]) -> str:
    clean = _clean(text)
    return unsafe.sub(lambda found: f"\\u{ord(found.group()):04x}", clean)


def _clean(text: str) -> str:
    """The same text with what UTF-8 cannot encode escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # a foreign __str__ must not cost the line
        return f"[{type(value).__name__} that cannot be shown: {type(error).__name__}]"


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _text(value)
    return repr(text) if " " in text or not text else text


def _message(record: logging.LogRecord) -> str:
    if access := _access(record):
        return f"{access['method']} {access['path']} {access['status']}"
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):  # a wrong format string: show its parts
        message = f"{record.msg} {record.args!r}"
    return _redact(message)


def _redact(text: str) -> str:
    """Cut to a bound, and without the passwords that URLs may hold."""
    if len(text) > MAX_FIELD:
        text = f"{text[:MAX_FIELD]}… ({len(text)} characters)"
    return _PASSWORD_IN_URL.sub(rf"\g<scheme>{HIDDEN}@", text) if "://" in text else text


def _given(record: logging.LogRecord) -> dict[str, Any]:
    """The fields that the caller gave."""
    fields = {name: value for name, value in islice(vars(record).items(), _NUM_OWN, None) if name not in _STANDARD}
    return fields | (_access(record) or {}) if record.name == "uvicorn.access" else fields


def _shown(name: str, value: Any) -> Any:
    """The value of a field as a line shows it: without prompts and secrets."""
    return HIDDEN if _is_secret(name) else _redact(value) if isinstance(value, str) else value


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return name.lower() in _SECRET


def _access(record: logging.LogRecord) -> dict[str, Any] | None:
    """The parts of uvicorn's access line; without the query, which may hold a secret."""
    if record.name != "uvicorn.access" or not isinstance(record.args, tuple) or len(record.args) != 5:
        return None
    client, method, path, _, status = record.args
    return {"client": client, "method": method, "path": unquote(str(path).partition("?")[0]), "status": status}


def _bound(record: logging.LogRecord) -> str:
    """The request id of a record: its own if it has one, else the task's."""
    own = getattr(record, "request_id", "")
    return own if isinstance(own, str) and own else request_id.get()


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    parts = [part for part in (record.exc_text, record.stack_info) if part]
    return _redact(_INPUT.sub(f"input_value={HIDDEN}, input_type=", "\n".join(parts)))


def _name(record: logging.LogRecord) -> str:
    return "uvicorn" if record.name == "uvicorn.error" else record.name


def _iso(created: float) -> str:
    whole = int(created)
    return f"{_second(whole)}.{int((created - whole) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
