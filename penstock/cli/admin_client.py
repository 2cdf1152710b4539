"""The operators' routes of a gateway, asked with the Python client: its URLs, its retries, its errors."""

from __future__ import annotations

from typing import TypeVar

from penstock.api.admin_answers import PATH
from penstock.client import Client
from penstock.client.calls import read_as

T = TypeVar("T")

TIMEOUT_S = 15.0
RETRIES = 2


class AdminClient(Client):
    """Asks the gateways at `urls`, separated by commas, until one answers. A context manager.

    `retries`: how often it asks again after all of them failed; 0 where asking twice is not the same as once.
    """

    def __init__(self, urls: str, api_key: str | None, *, retries: int = RETRIES) -> None:
        each = urls.split(",")
        super().__init__(*each, api_key=api_key, max_retries=len(each) * (retries + 1) - 1, patience_s=TIMEOUT_S)

    def call(self, method: str, path: str, kind: type[T]) -> T:
        """One call of `path`, below the operators' prefix; its JSON object as a `kind`. Raises `PenstockError`."""
        # Only a body makes the client send a content type, and without that or a key a gateway rejects a POST.
        body: dict[str, object] | None = {} if method == "POST" else None
        answer = self._run(self._calls.ask(method, f"{PATH}{path}", body))
        return read_as(answer, kind, "what an operators' route sends")
