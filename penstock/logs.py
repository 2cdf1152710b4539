"""Log lines: JSON for machines, short text for people, one line each, on stderr.

The request's id comes from a context variable. Whatever a client sent can neither break a line nor forge one, and
fields that hold prompts or secrets are hidden. Knows nothing of requests or of who logs.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import IO, Any, Literal
from urllib.parse import unquote

import msgspec

LogFormat = Literal["json", "text"]

MAX_FIELD = 16 * 1024
HIDDEN = "[hidden]"

request_id: ContextVar[str] = ContextVar("penstock_request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "request_id"}
_NUM_OWN = len(vars(logging.makeLogRecord({})))  # a record's own attributes come first, the caller's behind them
_SECRET = frozenset({"prompt", "messages", "authorization", "api_key", "password", "secret", "x_api_key"})
_PASSWORD_IN_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/@]{0,512}@")
_INPUT = re.compile(r"input_value=.*, input_type=")  # pydantic quotes what it refuses: a part of a prompt
# What some reader takes for the end of a line or a command to its terminal, and JSON does not escape.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_UNSAFE_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_QUIET = ("httpx", "httpx2", "httpcore", "httpcore2", "redis", "asyncio")
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class bind_request:
    """From here on, lines logged in this task (and in tasks it starts) carry this request id.

    With `with`, until the end of the block.
    """

    def __init__(self, value: str) -> None:
        self._token = request_id.set(value)

    def __enter__(self) -> None:
        """The id was bound by the call."""

    def __exit__(self, *error: object) -> None:
        request_id.reset(self._token)


class Seldom:
    """Lets one line through every `every_s` seconds, for what a peer can cause at any rate."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._next_at = float("-inf")

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + self._every_s
        return True


def configure(format: LogFormat = "json", level: str | int = "INFO", stream: IO[str] | None = None) -> None:
    """Send every logger's lines, uvicorn's and warnings among them, to `stream` (stderr) in one form.

    May be called again; the last call counts. Raises `ValueError` for an unknown level.
    """
    out = sys.stderr if stream is None else stream
    handler = _JsonLines(out) if format == "json" else logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(is_coloured=_is_coloured(out)))
    root = logging.getLogger()
    root.setLevel(level.upper() if isinstance(level, str) else level)
    root.handlers[:] = [handler]
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)
    # What no line shows need not be looked up for each: https://docs.python.org/3/howto/logging.html#optimization
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


def say(logger: logging.Logger, level: int, message: str, fields: dict[str, Any]) -> None:
    """`logger.log(level, message, extra=fields)`, at half the cost where nobody but our own handler would hear of it.

    For what is said once a request. `message` is a constant; the line has the task's id unless `fields` name another.
    """
    if not logger.isEnabledFor(level):
        return
    handler = _only_handler(logger)
    if isinstance(handler, _JsonLines) and not logger.filters and not handler.filters:
        handler.say(logger.name, level, message, fields)
    else:
        logger.log(level, message, extra=fields)


def _only_handler(logger: logging.Logger) -> logging.Handler | None:
    """The one handler that hears of what this logger says; None where there is none, or more."""
    at: logging.Logger | None = logger
    found: list[logging.Handler] = []
    while at is not None:
        found += at.handlers
        at = at.parent if at.propagate else None
    return found[0] if len(found) == 1 else None


class _JsonLines(logging.StreamHandler[IO[str]]):
    """`StreamHandler` that can say a line without a record for it."""

    def say(self, name: str, level: int, message: str, fields: dict[str, Any]) -> None:
        self.acquire()
        try:
            bound = fields.get("request_id") or request_id.get()
            line = _line(time.time(), logging.getLevelName(level), name, message, bound)
            _add(line, fields)
            self.stream.write(encode(line) + self.terminator)
            self.flush()
        except Exception:  # as every handler of `logging`: told on stderr, and whoever logs goes on
            self.handleError(logging.makeLogRecord({"name": name, "msg": message, "levelno": level}))
        finally:
            self.release()


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", "request_id"?, extra fields…, "exception"?}`, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = _line(record.created, record.levelname, _name(record), _message(record), _bound(record))
        _add(line, _given(record))
        if exception := _exception(self, record):
            line["exception"] = exception
        return encode(line)


def _line(created: float, level: str, name: str, message: str, bound: str) -> dict[str, Any]:
    line = {"time": _iso(created), "level": level.lower(), "logger": name, "message": message}
    if bound:
        line["request_id"] = bound
    return line


def _add(line: dict[str, Any], fields: dict[str, Any]) -> None:
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
        said = " ".join([_message(record), *(f"{name}={_show(value)}" for name, value in fields.items())])
        line = f"{at} {level} {_name(record).removeprefix('penstock.')}: {_escape(said, _UNSAFE_TEXT)}"
        if exception := _exception(self, record):
            line += "".join(f"\n    {_escape(part, _UNSAFE_TEXT)}" for part in exception.split("\n"))
        return line


def encode(line: dict[str, Any]) -> str:
    """One JSON object on one line, whatever the values are."""
    try:
        text = msgspec.json.encode(line, enc_hook=_text).decode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
        # Lone surrogates, keys that are no strings, integers beyond 64 bits, loops: rare, so the slow way.
        text = msgspec.json.encode({_clean(name): _clean(_text(value)) for name, value in line.items()}).decode()
    return text if text.isascii() else _escape(text, _UNSAFE)


def _escape(text: str, unsafe: re.Pattern[str]) -> str:
    clean = _clean(text)
    return unsafe.sub(lambda found: f"\\u{ord(found.group()):04x}", clean)


def _clean(text: str) -> str:
    """The same text with what UTF-8 cannot say written out."""
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
    except (TypeError, ValueError, KeyError):  # a wrong format string: say what there is
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
    """What a line shows of a field: neither prompts nor secrets."""
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
    """A line about one of several requests names its own; else it is the task's."""
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


def _is_coloured(stream: IO[str]) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ
