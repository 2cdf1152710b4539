"""One line each, whatever is logged; the request's id in it; and no prompt, no password, no forged line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from penstock import logs
from penstock.log_format import JsonFormatter, TextFormatter

logger = logging.getLogger("penstock.test")
UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """Where the lines go; what was configured before comes back."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs._QUIET}
    yield io.StringIO()
    logging.captureWarnings(False)
    root.handlers[:], _ = before
    root.setLevel(before[1])
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def lines(out: io.StringIO) -> Lines:
    logs.configure("json", "debug", out)
    return lambda: [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_one_json_object(lines: Lines) -> None:
    logger.info("request %s", "done", extra={"model": "mock", "total_ms": 1.5, "tokens": 3, "ok": True, "none": None})
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "penstock.test",
        "message": "request done",
        "model": "mock",
        "total_ms": 1.5,
        "tokens": 3,
        "ok": True,
        "none": None,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "mock", "total_ms": 1.5, "status": 200, "none": None},
        {"request_id": "g1.own", "caller": "k1"},
        {"request_id": ""},
        {"prompt": "private", "api_key": "sk-1", "level": "forged", "path": "a\u2028b\x1b[2J"},
        {"store": "redis://:password@host/0", "long": "x" * 20_000, "odd": {1, 2}, "surrogate": "\ud800"},
    ],
)
def test_a_line_of_log_fields_is_the_line_that_logging_makes(lines: Lines, fields: dict[str, Any]) -> None:
    with logs.bind_request("g1.task"):
        logs.log_fields(logger, logging.INFO, "request", fields)
        logger.info("request", extra=fields)
    fast, logged = lines()
    assert fast.pop("time")[:19] <= logged.pop("time")[:19]
    assert fast == logged
    assert "private" not in str(fast)


def test_a_line_of_log_fields_reaches_every_handler(out: io.StringIO, lines: Lines) -> None:
    heard: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    ear = Ear()
    logger.addHandler(ear)
    try:
        logs.log_fields(logger, logging.INFO, "request", {"status": 200})
    finally:
        logger.removeHandler(ear)
    assert [vars(record)["status"] for record in heard] == [200]
    assert [line["status"] for line in lines()] == [200]
    logs.configure("text", "warning", out)
    logs.log_fields(logger, logging.INFO, "too quiet", {})
    logs.log_fields(logger, logging.WARNING, "as text", {"status": 500})
    assert "too quiet" not in out.getvalue()
    assert out.getvalue().endswith("as text status=500\n")


@pytest.mark.parametrize("error", [ValueError("I/O operation on closed file"), BrokenPipeError()])
def test_a_line_that_cannot_be_written_raises_nothing(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    logs.configure("json", "info", Gone())
    logs.log_fields(logger, logging.INFO, "request", {"status": 200})
    assert type(error).__name__ in capsys.readouterr().err


def test_an_exception_is_one_field(lines: Lines) -> None:
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logger.exception("it broke")
    (line,) = lines()
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("RuntimeError: first\nsecond")
    assert line["level"] == "error"


async def test_the_request_id_is_that_of_the_task(lines: Lines) -> None:
    async def serve(name: str) -> None:
        logs.bind_request(name)
        await asyncio.sleep(0)
        logger.info("in a task")

    await asyncio.gather(serve("g.1"), serve("g.2"))
    logger.info("outside")
    with logs.bind_request("g.3"):
        logger.info("in a block")
        logger.info("of another", extra={"request_id": "g.4"})
    logger.info("behind it")
    assert [line.get("request_id") for line in lines()] == ["g.1", "g.2", None, "g.3", "g.4", None]


def test_prompts_and_secrets_are_hidden(lines: Lines) -> None:
    logger.info("x", extra={"prompt": "SECRET", "messages": ["SECRET"], "api_key": "SECRET", "Authorization": "SECRET"})
    logger.info("store redis://user:SECRET@host:6379/0 is away", extra={"url": "rediss://:SECRET@host"})
    try:
        raise ConnectionError("redis://:SECRET@host")
    except ConnectionError:
        logger.exception("x")
    assert "SECRET" not in json.dumps(lines())
    assert lines()[1]["message"] == "store redis://[hidden]@host:6379/0 is away"


def test_values_that_pydantic_refused_are_not_quoted(lines: Lines) -> None:
    class Body(BaseModel):
        max_tokens: int

    secret = "SE" + "CRET"  # a traceback shows the source
    with pytest.raises(ValueError) as caught:
        Body.model_validate({"max_tokens": secret})
    logger.error("x", exc_info=caught.value)
    assert "max_tokens" in lines()[0]["exception"]
    assert secret not in lines()[0]["exception"]


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(st.characters(exclude_categories=[])), _ANYTHING)
def test_nothing_breaks_a_line(message: str, value: Any) -> None:
    record = logging.makeLogRecord({"name": "x", "msg": message, "levelname": "INFO", "field": value})
    line = JsonFormatter().format(record)
    assert len(line.splitlines()) == 1
    assert line.encode("utf-8")
    assert json.loads(line)["level"] == "info"
    text = TextFormatter().format(record)
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", ["\ud800", 10**400, {(1, 2): 3}, Unspeakable(), {"a": {"b": "\udfff\n"}}, object()])
def test_a_value_that_cannot_be_encoded_does_not_cost_the_line(lines: Lines, value: object) -> None:
    logger.info("x", extra={"field": value, "model": "mock"})
    (line,) = lines()
    assert "field" in line
    assert line["message"] == "x"


def test_a_field_cannot_pose_as_another(lines: Lines) -> None:
    logger.info('x", "level": "error', extra={"level": "error", "time": "never", "logger": "root"})
    (line,) = lines()
    assert (line["level"], line["level_"], line["logger"]) == ("info", "error", "penstock.test")
    assert line["message"] == 'x", "level": "error'


def test_a_wrong_format_string_is_still_a_line() -> None:
    record = logging.makeLogRecord({"msg": "%d of %d", "args": ("x",)})
    assert json.loads(JsonFormatter().format(record))["message"] == "%d of %d ('x',)"


def test_a_huge_field_is_cut(lines: Lines) -> None:
    logger.info("x" * 10**6, extra={"path": "y" * 10**6})
    assert len(json.dumps(lines()[0])) < 40_000


def test_uvicorn_speaks_in_the_same_form_and_once(out: io.StringIO) -> None:
    for name in UVICORN:
        logging.getLogger(name).addHandler(logging.StreamHandler(out))
        logging.getLogger(name).propagate = False
    logs.configure("json", "info", out)
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7, extra={"color_message": "\x1b[36m"})
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/v1/x%0Ay?key=SECRET", "1.1", 200
    )
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (first["logger"], first["message"]) == ("uvicorn", "Started server process [7]")
    assert "color_message" not in first
    assert (second["method"], second["path"], second["status"]) == ("GET", "/v1/x\ny", 200)
    assert "SECRET" not in out.getvalue()


def test_configuring_twice_does_not_double_the_lines(out: io.StringIO) -> None:
    logs.configure("text", "info", out)
    logs.configure("json", "warning", out)
    logger.info("not this")
    logger.warning("this")
    assert len(out.getvalue().splitlines()) == 1


def test_warnings_are_lines_and_libraries_are_quiet(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(False)  # else the next line does nothing where an earlier test has left it on
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    logging.getLogger("httpcore").info("chatter")
    (line,) = lines()
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in line["message"]


def test_an_unknown_level_is_an_error(out: io.StringIO) -> None:
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("json", "loud", out)


def test_text_is_short_and_for_people(out: io.StringIO) -> None:
    logs.configure("text", "info", out)
    with logs.bind_request("g.1"):
        logger.warning("slow\nclient", extra={"model": "mock", "total_ms": 1.23456789, "why": "a b"})
    line = out.getvalue()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} WARNING test: slow\\u000aclient "
        r"request_id=g\.1 model=mock total_ms=1\.23457 why='a b'\n",
        line,
    )


def test_text_shows_an_exception_below(out: io.StringIO) -> None:
    logs.configure("text", "info", out)
    try:
        raise RuntimeError("it\x1b[31m")
    except RuntimeError:
        logger.exception("x")
    first, *rest = out.getvalue().splitlines()
    assert first.endswith("test: x")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == "    RuntimeError: it\\u001b[31m"


def test_colour_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, out: io.StringIO) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(out, "isatty", lambda: True)
    logs.configure("text", "info", out)
    logger.info("x")
    assert "\x1b[32m" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out.truncate(0)
    logs.configure("text", "info", out)
    logger.info("x")
    assert "\x1b" not in out.getvalue()
