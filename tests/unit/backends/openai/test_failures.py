"""What a failed request at an upstream means, from its status, its body and its `Retry-After`."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.openai.failures import MAX_REST_S, of_status, read_error, read_retry_after
from penstock.errors import PenstockError


@pytest.mark.parametrize(
    ("status", "reason", "again", "is_fault", "costs_try"),
    [
        (400, "invalid", "never", False, True),
        (422, "invalid", "never", False, True),
        (401, "credentials", "elsewhere", False, False),
        (403, "credentials", "elsewhere", False, False),
        (404, "not_found", "elsewhere", False, False),
        (402, "refused", "elsewhere", False, False),
        (302, "refused", "elsewhere", False, False),
        (408, "refused", "later", False, True),
        (429, "rate_limited", "later", False, False),
        (500, "server_error", "later", True, True),
        (501, "invalid", "elsewhere", False, False),
        (503, "server_error", "later", True, False),
    ],
)
def test_a_status_has_its_error(status: int, reason: str, again: str, is_fault: bool, costs_try: bool) -> None:
    found = of_status(status, None, b"", "m")
    assert (found.reason, found.again, found.is_fault, found.costs_try) == (reason, again, is_fault, costs_try)
    assert found.error.message


def test_a_quota_that_is_used_up_is_not_waited_for() -> None:
    assert of_status(429, None, b'{"error": {"code": "insufficient_quota"}}', "m").again == "elsewhere"


@given(
    st.binary(max_size=80) | st.text(max_size=80).map(str.encode),
    st.integers(300, 599),
    st.text("0123456789.-einfa ", max_size=8),
)
def test_whatever_an_upstream_answers_it_is_some_trouble(body: bytes, status: int, retry_after: str) -> None:
    found = of_status(status, retry_after, body, "m", "secret")
    assert isinstance(found.error, PenstockError)
    assert found.rest_s is None or 0 <= found.rest_s <= MAX_REST_S
    assert found.is_fault == (status >= 500 and status != 501)


def test_a_key_is_in_no_message() -> None:
    body = b'{"error": {"message": "sk-1 is wrong\\u0000", "param": "sk-1", "code": "sk-1"}}'
    said = read_error(body, "sk-1")
    assert (said.message, said.param, said.code) == ("*** is wrong", "***", "***")
    error = of_status(400, None, body, "m", "sk-1").error
    assert (error.message, error.param) == ("*** is wrong", "***")


def test_both_forms_of_an_error() -> None:
    assert read_error(b'{"error": "plain"}').message == "plain"
    assert read_error(b'{"message": "flat", "object": "error"}').message == "flat"


NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
EPOCH = NOW.timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0), (" 7 ", 7.0), ("0.5", 0.5), ("0", 0.0), ("-3", 0.0), ("+7", 7.0), ("7, 7", 7.0), ("\u0667", 7.0),
        ("1e99", 60.0), ("1e400", None), ("9999", 60.0), ("86400", 60.0), ("99999999", 60.0), ("1000000000", 60.0),
        ("7s", 7.0), ("7 s", 7.0), ("1.5s", 1.5), ("250ms", 0.25), ("1m", 60.0), ("0m7.5s", 7.5), ("1m30s", 60.0),
        ("1s500ms", 1.5), ("1h", None), ("m", None), ("..s", None),
        (f"{EPOCH + 7:.0f}", 7.0), (f"{EPOCH - 7:.0f}", 0.0), (f"{EPOCH + 86400:.0f}", 60.0),
        (f"{1000 * (EPOCH + 7):.0f}", 7.0), (f"{1000 * (EPOCH - 7):.0f}", 0.0), (f"{EPOCH + 7.5}", 7.5),
        ("Wed, 25 Nov 2026 12:00:10 GMT", 10.0), ("Wed, 25 Nov 2020 12:00:10 GMT", 0.0),
        ("Wed, 25 Nov 2066 12:00:10 GMT", 60.0), ("Wednesday, 25-Nov-26 12:00:10 GMT", 10.0),
        ("25 Nov 2026 13:00:10 +0100", 10.0), ("2026-11-25T12:00:10Z", 10.0), ("2026-11-25T13:00:10+01:00", 10.0),
        ("2026-11-25 12:00:10", 10.0), ("Wed, 99 Nov 2026 12:00:10 GMT", None),
        ("nan", None), ("inf", None), ("-inf", None), ("soon", None), ("", None), ("  ", None), (",", None),
        (None, None),
    ],
)  # fmt: skip
def test_every_form_of_retry_after(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value, now=NOW) == seconds


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
        (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, ..."}),
        (400, {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."}),
        (400, {"error": {"code": 400, "message": "request too large", "type": "exceed_context_size_error"}}),
        (400, {"error": {"code": 400, "message": "the request exceeds the available context size"}}),
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9"}),
        (400, {"message": "Prompt contains 9 tokens, too large for model with 8 maximum context length"}),
        (413, {"error": {"message": "input exceeds the context window"}}),
        (400, {"object": "error", "message": "prompt is too long: 9 tokens > 8 maximum", "code": 400}),
    ],
)
def test_too_long_for_the_context_keeps_its_code(status: int, body: dict[str, object]) -> None:
    error = of_status(status, None, json.dumps(body).encode(), "m").error
    assert (error.code, error.status) == ("context_length_exceeded", 400)
    assert "HTTP" not in error.message


def test_other_refusals_are_plain() -> None:
    assert of_status(400, None, b'{"error": {"message": "temperature must be at most 2"}}', "m").error.code == (
        "invalid_request"
    )


def test_an_engines_own_words_are_in_its_error() -> None:
    body = b'{"error": {"message": "image input is not supported", "code": 500}}'
    found = of_status(500, None, body, "m")
    assert found.error.message == "The model's upstream failed (HTTP 500): image input is not supported"
    assert found.answer
    lacking = of_status(501, None, b'{"error": {"message": "This server does not support embeddings."}}', "m")
    assert (lacking.error.message, lacking.error.status) == ("This server does not support embeddings.", 400)


def test_a_task_that_a_penstock_below_lacks_is_lacking_here() -> None:
    found = of_status(501, None, b'{"error": {"message": "It cannot.", "code": "unsupported_task"}}', "m")
    assert (found.error.code, found.error.status, found.again) == ("unsupported_task", 501, "elsewhere")
