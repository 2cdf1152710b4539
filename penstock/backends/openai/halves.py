"""Halves of surrogate pairs in an engine's JSON: joined with their other half, else U+FFFD. Pure.

An engine that escapes each UTF-16 unit may end a chunk with `\\ud83c` and begin the next one with `\\udf0d`. A strict
reader of JSON refuses both; this one reads them, and only such chunks come here.
"""

from __future__ import annotations

import json
from typing import Any

from penstock.backends.openai.failures import malformed

_GROWING = ("content", "text", "refusal", "reasoning_content", "reasoning", "arguments", "thinking")


class Halves:
    """The first halves that wait for their second: true while there is one. By the place of their text in the chunk."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def decode(self, data: str) -> Any:
        """A chunk that a strict reader refuses. Raises `UpstreamError` for what is not JSON either way."""
        try:
            return self.mend(json.loads(data))
        except (ValueError, RecursionError):
            raise malformed("a chunk is not JSON") from None

    def mend(self, chunk: Any) -> Any:
        """The chunk with whole characters only; the last half of a growing text is kept for the next chunk."""
        return self._mend(chunk, "", is_growing=False)

    def rest(self) -> tuple[str, str]:
        """Text and reasoning for the halves that stayed alone."""
        waiting, self._waiting = self._waiting, {}
        is_thought = [place.rpartition("/")[2] in ("reasoning", "reasoning_content", "thinking") for place in waiting]
        num_thoughts = sum(is_thought)
        num_texts = sum(
            not thought and place.rpartition("/")[2] != "arguments"
            for place, thought in zip(waiting, is_thought, strict=True)
        )
        return "\ufffd" * num_texts, "\ufffd" * num_thoughts

    def _mend(self, value: Any, place: str, *, is_growing: bool) -> Any:
        if isinstance(value, dict):
            name = f"{place}[{value['index']}]" if isinstance(value.get("index"), int) else place
            return {
                whole(key): self._mend(one, f"{name}/{key}", is_growing=key in _GROWING) for key, one in value.items()
            }
        if isinstance(value, list):
            return [self._mend(one, place, is_growing=False) for one in value]
        if not isinstance(value, str):
            return value
        if not is_growing:
            return whole(value)
        if value:
            value = self._waiting.pop(place, "") + value
        if "\ud800" <= value[-1:] <= "\udbff":
            self._waiting[place] = value[-1]
            value = value[:-1]
        return whole(value)


def whole(text: str) -> str:
    """`text` with its pairs joined, and U+FFFD for each half alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
