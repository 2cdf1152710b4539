"""Options of the `openai` backend under the names that they had until November 2026: `url2`, `engine3`. Pure.

They are read for one release, with a notice at start-up that shows the new form (`load`). Then this file goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BACKENDS = ("openai", "penstock.backends.openai:OpenAIBackend")
FIELDS = ("url", "model", "key_env", "engine", "slots")
TABLE = "upstreams"

_OLD = re.compile(rf"({'|'.join(FIELDS)})([23])")


def old_names(backend: str, options: Mapping[str, str]) -> list[str]:
    """Those of `options` that are old names."""
    return [option for option in options if _OLD.fullmatch(option)] if backend in BACKENDS else []


def new_names(backend: str, options: Mapping[str, str]) -> dict[str, str] | None:
    """All options under their new names; None if there is nothing to rename.

    With an old name in use, the fields without a number belong to the first upstream and get their place in the table,
    too. An option keeps its place in the order. Raises `ValueError`, in the names as they were written, for an option
    under both names and for one whose upstream, or one in front of it, has no URL.
    """
    if not old_names(backend, options):
        return None
    renamed: dict[str, str] = {}
    for option, value in options.items():
        old = _OLD.fullmatch(option)
        new = f"{TABLE}.{old[2]}.{old[1]}" if old else f"{TABLE}.1.{option}" if option in FIELDS else option
        if new in renamed or (new != option and new in options):
            raise ValueError(f"{option} is the old name of {new}, which is given too")
        renamed[new] = value
    _check_urls(options, renamed)
    return renamed


def _check_urls(options: Mapping[str, str], renamed: Mapping[str, str]) -> None:
    """Later checks see only the new names, which the user did not write."""
    old = {option: int(match[2]) for option in options if (match := _OLD.fullmatch(option))}
    for number in range(1, max(old.values()) + 1):
        if f"{TABLE}.{number}.url" not in renamed:
            option = next(option for option, its_number in old.items() if its_number >= number)
            raise ValueError(f"{option} without url{number if number > 1 else ''}")
