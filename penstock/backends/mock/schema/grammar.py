"""The grammar of a schema's regular expressions: the part of ECMAScript's that schemas use, as a tree."""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from penstock.backends.mock.schema.keywords import Unwritable

MAX_LENGTH = 1000  # of a pattern
MAX_NESTED = 40
MANY = 1 << 20  # times, without an upper limit

Ranges = tuple[tuple[str, str], ...]

_DIGIT: Ranges = (("0", "9"),)
_WORD: Ranges = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_SPACE: Ranges = (("\t", "\r"), (" ", " "), ("\xa0", "\xa0"), ("\u2028", "\u2029"), ("\ufeff", "\ufeff"))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}


class Chars(NamedTuple):
    """One character in one of the ranges, or with `is_negated` one that is in none."""

    ranges: Ranges
    is_negated: bool = False

    def has(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) is not self.is_negated


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Row:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A condition on the place in the text: `^`, `$`, `\\b` or `\\B`."""

    kind: str

    def holds(self, text: str, at: int) -> bool:
        if self.kind in "^$":
            return at == (0 if self.kind == "^" else len(text))
        word = Chars(_WORD)
        sides = [word.has(char) for char in (text[at - 1 : at], text[at : at + 1]) if char]
        return (sum(sides) == 1) is (self.kind == "b")


@dataclass(frozen=True, slots=True)
class Ahead:
    """What must follow, or with `is_negated` must not: `(?=…)`, `(?!…)`."""

    part: Node
    is_negated: bool


Node = Chars | Repeat | Row | Either | Place | Ahead


@lru_cache(maxsize=256)
def parsed(pattern: str) -> Node:
    if len(pattern) > MAX_LENGTH:
        raise Unwritable(f"a pattern has more than {MAX_LENGTH} characters")
    return _Parser(pattern).whole()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._either()
        if self._at < len(self._pattern):
            raise self._fault()
        return node

    def _either(self) -> Node:
        parts = [self._row()]
        while self._takes("|"):
            parts.append(self._row())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _row(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            parts.append(self._repeated(self._single()))
        return parts[0] if len(parts) == 1 else Row(tuple(parts))

    def _repeated(self, node: Node) -> Node:
        if self._takes("*"):
            node = Repeat(node, 0, MANY)
        elif self._takes("+"):
            node = Repeat(node, 1, MANY)
        elif self._takes("?"):
            return Repeat(node, 0, 1)
        elif self._takes("{"):
            low, comma, high = self._until("}").partition(",")
            if not low.isdecimal() or not (high.isdecimal() or not high) or len(low + high) > 10:
                raise self._fault()
            node = Repeat(node, int(low), int(high) if high else MANY if comma else int(low))
            if node.high < node.low:
                raise self._fault()
        self._takes("?")  # as few as possible: the same texts match
        return node

    def _single(self) -> Node:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == ".":
            return Chars((("\n", "\n"), ("\r", "\r"), ("\u2028", "\u2029")), True)
        if char in "^$":
            return Place(char)
        if char == "\\":
            return Place(self._next()) if self._pattern[self._at : self._at + 1] in ("b", "B") else self._escape()
        if char in "*+?{":
            raise self._fault()
        return _only(char)

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MAX_NESTED:
            raise self._fault()
        kind = next((kind for kind in ("?:", "?=", "?!", "?<=", "?<!") if self._takes(kind)), "")
        if kind in ("?<=", "?<!"):
            raise self._fault()
        if not kind and (self._takes("?<") or self._takes("?P<")):
            self._until(">")
        node = self._either()
        if not self._takes(")"):
            raise self._fault()
        self._depth -= 1
        return Ahead(node, kind == "?!") if kind in ("?=", "?!") else node

    def _class(self) -> Chars:
        is_negated = self._takes("^")
        found: list[tuple[str, str]] = []
        while not self._takes("]"):
            one = self._member()
            if len(one) == 1 and self._takes_dash():
                last = self._member()
                (low, alone), (high, end) = one[0], last[0]
                if low != alone or high != end or high < low:
                    raise self._fault()
                one = ((low, high),)
            found += one
        return Chars(tuple(found), is_negated)

    def _takes_dash(self) -> bool:
        """Whether a dash is next that is not the last character of the class."""
        return self._pattern[self._at + 1 : self._at + 2] != "]" and self._takes("-")

    def _member(self) -> Ranges:
        char = self._next()
        if char != "\\":
            return ((char, char),)
        escaped = self._escape()
        if escaped.is_negated:
            raise self._fault()
        return escaped.ranges

    def _escape(self) -> Chars:
        char = self._next()
        if char.lower() in _CLASSES:
            return Chars(_CLASSES[char.lower()], char.isupper())
        if char in _CONTROLS:
            return _only(_CONTROLS[char])
        if char in "xu":
            digits = self._pattern[self._at : self._at + (2 if char == "x" else 4)]
            self._at += len(digits)
            if len(digits) < (2 if char == "x" else 4) or not set(digits) <= set(string.hexdigits):
                raise self._fault()
            if 0xD800 <= (code := int(digits, 16)) <= 0xDFFF:
                raise self._fault()
            return _only(chr(code))
        if char.isalnum():  # \1, \k, \p{…}
            raise self._fault()
        return _only(char)

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise self._fault()
        self._at += 1
        return self._pattern[self._at - 1]

    def _takes(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _until(self, end: str) -> str:
        start = self._at
        at = self._pattern.find(end, start)
        if at < 0:
            raise self._fault()
        self._at = at + 1
        return self._pattern[start:at]

    def _fault(self) -> Unwritable:
        return Unwritable(f"the pattern {self._pattern[:80]!r} is not supported")


def _only(char: str) -> Chars:
    return Chars(((char, char),))
