"""The headers and errors of Anthropic's API. Ours are added to them: `x-request-id`, code and param.

Form: https://docs.anthropic.com/en/api/errors. Our statuses stay what they are.
"""

from __future__ import annotations

from typing import Any

from penstock.errors import ContextLengthExceeded, PenstockError, UnsupportedParameter
from penstock.http.edge import Call, Dialect

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# By this Anthropic's SDKs know that they must send the whole conversation; they do so by themselves.
_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


class AnthropicDialect(Dialect):
    def headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        return [(b"request-id", call.id.encode())]

    def envelope(self, error: PenstockError, request_id: str) -> dict[str, Any]:
        kind = _TYPES.get(error.status, "api_error" if error.status >= 499 else "invalid_request_error")
        message = error.message
        if isinstance(error, ContextLengthExceeded):  # the words by which Anthropic's clients know it
            message = f"prompt is too long: {message}"
        detail: dict[str, Any] = {"type": kind, "message": message, "code": error.code, "param": error.param}
        if isinstance(error, UnsupportedParameter) and error.param == "thread":
            detail["details"] = _NO_THREADS
        return {"type": "error", "error": detail, "request_id": request_id}


ANTHROPIC = AnthropicDialect()
