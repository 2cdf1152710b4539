"""The errors of Ollama's API: a sentence. Our code is in the log and in `x-should-retry`; the status stays what it is.

Form: https://docs.ollama.com/api/errors.
"""

from __future__ import annotations

from typing import Any

from penstock.errors import PenstockError
from penstock.http.edge import Call, Dialect


class OllamaDialect(Dialect):
    def headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        return []

    def envelope(self, error: PenstockError, request_id: str) -> dict[str, Any]:
        return {"error": error.message}


OLLAMA = OllamaDialect()
