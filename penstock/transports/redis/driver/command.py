"""Commands as values: packed once, ready to be sent. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hiredis import pack_command

Argument = str | bytes | int


class Command:
    """One command. `packed` is what to send; `again` the same for a server that does not know the script; `on` the
    keys of a script."""

    __slots__ = ("_again", "on", "packed")

    def __init__(
        self, packed: bytes, again: tuple[bytes | str | int, ...] | None = None, on: Sequence[str | bytes] = ()
    ) -> None:
        self.packed = packed
        self._again = again
        self.on = on

    @property
    def again(self) -> bytes | None:
        return None if self._again is None else pack(self._again)


def pack(words: tuple[Argument, ...]) -> bytes:
    """A command as it is sent (RESP)."""
    packed: bytes = pack_command(words)  # type: ignore[arg-type]  # hiredis' stub has a tuple of one
    return packed


def command(*words: Argument, on: Sequence[str | bytes] = ()) -> Command:
    """`on`: its keys, where one of the wrong type may be removed."""
    return Command(pack(words), on=on)
