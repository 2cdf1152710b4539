"""What a failed request at an upstream means, from its status, its body and its `Retry-After`."""

from __future__ import annotations

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
    assert found.is_fault == (status >= 500)


def test_a_key_is_in_no_message() -> None:
    body = b'{"error": {"message": "sk-1 is wrong\\u0000", "param": "sk-1", "code": "sk-1"}}'
    said = read_error(body, "sk-1")
    assert (said.message, said.param, said.code) == ("*** is wrong", "***", "***")
    error = of_status(400, None, body, "m", "sk-1").error
    assert (error.message, error.param) == ("*** is wrong", "***")


def test_both_forms_of_an_error() -> None:
    assert read_error(b'{"error": "plain"}').message == "plain"
    assert read_error(b'{"message": "flat", "object": "error"}').message == "flat"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("nan", None), ("inf", None), ("soon", None), ("", None), (None, None),
        ("1e99", 60.0), ("9999", 60.0), ("Wed, 25 Nov 2026 12:00:10 GMT", 10.0), ("Wed, 25 Nov 2020 12:00:10 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value, now=datetime(2026, 11, 25, 12, tzinfo=UTC)) == seconds
