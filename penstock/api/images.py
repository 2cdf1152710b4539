"""The places of a conversation's images: in the request itself, or on the web. Nothing here fetches any."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

_ALLOWED = ("https://", "http://", "data:")


def _check(url: str) -> str:
    """An engine may fetch what it is given: never a file of its machine, nor another protocol."""
    if not url[:8].lower().startswith(_ALLOWED):
        raise ValueError("an image is an https:, http: or data: URL")
    return url


ImageLocation = Annotated[str, Field(min_length=1), AfterValidator(_check)]
