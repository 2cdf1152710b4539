"""Regular expressions of a schema (`pattern`): texts that match one, and whether a text does.

Matching takes time in proportion to the text times the pattern, whatever they are: the pattern is a client's, and `re`
may take forever with one.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import lru_cache

from penstock.backends.mock.schema.draw import Draw
from penstock.backends.mock.schema.formats import noun
from penstock.backends.mock.schema.grammar import Ahead, Chars, Either, Node, Place, Repeat, Row, parsed
from penstock.backends.mock.schema.keywords import Root, Unwritable

MAX_TEXT = 10_000  # characters that are written for one
_LIKELY = (string.ascii_lowercase, string.ascii_letters + string.digits, string.printable)


class Pattern:
    """Raises `Unwritable` for a pattern that this file does not know."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._node = parsed(pattern)

    def matches(self, text: str, root: Root) -> bool:
        """Whether some part of `text` matches. `root` counts the work."""
        return bool(_ends(self._node, frozenset(range(len(text) + 1)), text, root))

    def written(self, draw: Draw, root: Root, fits: Callable[[str], bool]) -> str:
        """A text for which `fits` is true, which must include that it matches. `root` counts the work."""
        for spread in (1, 0, 2, 4, 4, 8, 16, 32, 64, 128):
            text, more = "".join(_written(self._node, draw, spread, root)), noun(draw) * spread
            for found in (text, text + more, more + text):  # a pattern may be for a part of the text
                if len(found) <= MAX_TEXT and fits(found):
                    return found
        raise Unwritable(f"no text is found for the pattern {self._pattern[:80]!r}")


def _written(node: Node, draw: Draw, spread: int, root: Root) -> list[str]:
    """Characters for `node`; what may repeat is repeated up to `spread` times more than it must."""
    if isinstance(node, Chars):
        choice = _choice(node)
        return [choice[draw.below(len(choice))]]
    if isinstance(node, Row):
        return [char for part in node.parts for char in _written(part, draw, spread, root)]
    if isinstance(node, Either):
        return _written(node.parts[draw.below(len(node.parts))], draw, spread, root)
    if not isinstance(node, Repeat):
        return []
    found: list[str] = []
    for _ in range(node.low + draw.below(min(node.high - node.low, spread) + 1)):
        part = _written(node.part, draw, spread, root)
        if not part:  # a part that may be empty: nothing comes of more of it, and they may be a million
            root.spend()
        found += part
        if len(found) > MAX_TEXT:
            raise Unwritable("a pattern asks for too long a text")
    return found


def _ends(node: Node, starts: frozenset[int], text: str, root: Root) -> frozenset[int]:
    """The places in `text` where a match of `node` may end that begins at one of `starts`."""
    root.spend(1 + len(starts) // 32)
    if isinstance(node, Chars):
        at_chars = [at for at in starts if at < len(text)]
        allowed = {char for char in {text[at] for at in at_chars} if node.has(char)}
        return frozenset(at + 1 for at in at_chars if text[at] in allowed)
    if isinstance(node, Row):
        for part in node.parts:
            starts = _ends(part, starts, text, root)
        return starts
    if isinstance(node, Either):
        return frozenset().union(*(_ends(part, starts, text, root) for part in node.parts))
    if isinstance(node, Place):
        return frozenset(at for at in starts if node.holds(text, at))
    if isinstance(node, Ahead):
        found = (at for at in starts if bool(_ends(node.part, frozenset({at}), text, root)) is not node.is_negated)
        return frozenset(found)
    return _ends_of_repeat(node, starts, text, root)


def _ends_of_repeat(node: Repeat, starts: frozenset[int], text: str, root: Root) -> frozenset[int]:
    now = starts
    for _ in range(node.low):
        before, now = now, _ends(node.part, now, text, root)
        if now in (frozenset(), before):
            break
    found, fresh = now, now
    for _ in range(node.high - node.low):
        fresh = _ends(node.part, fresh, text, root) - found
        if not fresh:
            break
        found |= fresh
    return found


@lru_cache(maxsize=256)
def _choice(node: Chars) -> str:
    """Characters that `node` allows: letters, if there are any."""
    wide = node.is_negated or len(node.ranges) > 2
    for likely in _LIKELY if wide else _LIKELY[1:]:
        if found := "".join(char for char in likely if node.has(char)):
            return found
    if node.is_negated or not node.ranges:
        raise Unwritable("a class of characters in a pattern is empty")
    return node.ranges[0][0]
