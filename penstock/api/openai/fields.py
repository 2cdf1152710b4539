"""Fields of chat completions and completions that no other API has: several answers of one request. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from penstock.api.fields import Strict, exactly
from penstock.api.intake import Draft

MAX_CHOICES = 128  # requests of one call


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="A last chunk with the usage, before `[DONE]`.")
    include_obfuscation: Annotated[Literal[False], exactly(False)] | None = None


class ChoiceFields(Strict):
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="How many answers; each is a request of its own.")
    stream_options: StreamOptions | None = None

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def copies(draft: Draft, n: int) -> list[Draft]:
    """`n` drafts of the same answer. With a seed each has its own, counted up from it, or all would be one answer."""
    seed = draft.sampling.get("seed")
    if seed is None:
        return [draft] * n
    return [
        replace(draft, sampling=draft.sampling | {"seed": (seed + 2**63 + number) % 2**64 - 2**63})
        for number in range(n)
    ]
