"""Lists without some items that the client wrote: an error still names the places in what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.http.field_errors import Path


class Sifted(list[Any]):
    """The items that stayed. `places`: where each of them was."""

    places: list[int]


def sifted(items: list[Any], stays: Callable[[Any], bool]) -> list[Any]:
    """The items that stay; `items` itself if all do, and an empty list if none does."""
    places = [place for place, item in enumerate(items) if stays(item)]
    if len(places) == len(items):
        return items
    if not places:
        return []
    kept = Sifted(items[place] for place in places)
    kept.places = places
    return kept


def as_written(path: Path, data: Any) -> Path:
    """A path in `data` as the client wrote it."""
    written: list[str | int] = []
    here = data
    for part in path:
        if isinstance(here, list) and isinstance(part, int) and part < len(here):
            written.append(here.places[part] if isinstance(here, Sifted) else part)
            here = here[part]
        else:
            written.append(part)
            here = here.get(part) if isinstance(here, dict) else None
    return tuple(written)
