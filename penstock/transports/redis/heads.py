"""The heads of the Lua scripts, read: what each promises, its keys, its arguments, what it returns.

A head is the comment at the top of a file. Its form is fixed, so that pages and tests can be made from it:

    #!lua flags=allow-oom
    -- name: what it promises, in as many lines as it needs.
    -- KEYS  1 the first   2 the second
    -- ARGV  1 the first   2 the second
    --       3 one more, on a line of its own
    -- Returns what it returns
    --         (continued)

Places are parted by two spaces or more; `2 to 5 …` and `3… …` name several. Pure; no I/O but reading the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

_PLACE = re.compile(r"(?:^|\s{2,})(\d+(?: to \d+|…)?) (?=\S)")


@dataclass(frozen=True, slots=True)
class Head:
    """`keys` and `argv`: place and meaning of each. `slot`: `request`, `queue` or `own`."""

    name: str
    promise: str
    needs_memory: bool
    keys: tuple[tuple[str, str], ...]
    argv: tuple[tuple[str, str], ...]
    returns: str

    @property
    def slot(self) -> str:
        first = self.keys[0][1]
        return (
            "request" if first.startswith("{inference:response:") else "queue" if "Q" in first.split(":")[0] else "own"
        )

    @property
    def num_keys(self) -> int | None:
        """None where there may be any number."""
        return None if "…" in self.keys[-1][0] else int(self.keys[-1][0])


def heads() -> list[Head]:
    """Of every script, in the order of their names. `ValueError` for a head that has another form."""
    folder = resources.files(__package__).joinpath("lua")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".lua")), key=lambda file: file.name)
    return [read_head(file.name.removesuffix(".lua"), file.read_text(encoding="utf-8")) for file in files]


def read_head(name: str, source: str) -> Head:
    """`ValueError` for a head that has another form."""
    first, *lines = source.splitlines()
    if not first.startswith("#!lua"):
        raise ValueError(f"{name}.lua: the first line is not #!lua with its flags")
    parts: dict[str, list[str]] = {}
    part = ""
    for line in lines:
        if not line.startswith("--"):
            break
        text = line[2:]
        begins = re.match(rf" ({re.escape(name)}:|KEYS|ARGV|Returns)(?= |$)", text)
        if begins:
            part, text = begins[1], text[begins.end() :]
        parts.setdefault(part, []).append(text if part in ("KEYS", "ARGV") else text.strip())
    if not parts.keys() >= {f"{name}:", "KEYS", "Returns"} or "" in parts:
        raise ValueError(f"{name}.lua: its head needs the parts `{name}:`, `KEYS` and `Returns`, in this order")
    return Head(
        name=name,
        promise=" ".join(parts[f"{name}:"]),
        needs_memory="allow-oom" not in first,
        keys=_places(name, parts["KEYS"]),
        argv=_places(name, parts.get("ARGV", [])),
        returns=" ".join(parts["Returns"]),
    )


def _places(name: str, lines: list[str]) -> tuple[tuple[str, str], ...]:
    """The numbered places of some lines, which must be counted without a gap."""
    found: list[tuple[str, str]] = []
    for line in lines:
        before, *pairs = _PLACE.split("  " + line.strip())
        if before.strip():
            if not found:
                raise ValueError(f"{name}.lua: {before.strip()!r} has no place")
            found[-1] = (found[-1][0], f"{found[-1][1]} {before.strip()}")
        found += [(place, what.strip()) for place, what in zip(pairs[::2], pairs[1::2], strict=True)]
    expected = 1
    for place, _ in found:
        begin, _, end = place.rstrip("…").partition(" to ")
        if int(begin) != expected:
            raise ValueError(f"{name}.lua: place {begin} where {expected} was expected")
        expected = int(end or begin) + 1
    return tuple(found)
