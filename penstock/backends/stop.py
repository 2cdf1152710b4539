"""Stop strings over a stream of tokens. Pure: knows nothing of jobs, events or engines.

A stop string may begin inside one token and end inside another. A token is held back while its text may still turn
out to be the beginning of a stop string; the matched text itself is never released. Where several stop strings could
match, the one that is complete first wins, and of those the longest: so the outcome does not depend on how the text
is split into tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.rich_token import Token, text_of


class StopMatcher:
    """Push tokens one by one; it returns those that may be sent."""

    __slots__ = ("_held", "_stops", "_text")

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held: list[Token] = []
        self._text = ""

    def push(self, token: Token) -> tuple[list[Token], bool]:
        """The tokens that `token` decides, and whether a stop string is now complete.

        When it is, the last of them may be a cut token, and no more may be pushed.
        """
        self._held.append(token)
        self._text += text_of(token)
        cut = self._match()
        if cut is not None:
            return self._release(cut, cuts=True), True
        return self._release(self._undecided(), cuts=False), False

    def flush(self) -> list[Token]:
        """Call it when the stream has ended: the tokens that were held back, as they are not a stop string."""
        held, self._held, self._text = self._held, [], ""
        return held

    def _match(self) -> int | None:
        """Index of the first complete stop string."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = self._text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
        return None if best is None else best[1]

    def _undecided(self) -> int:
        """The position from which the text may be the beginning of a stop string."""
        text, at = self._text, len(self._text)
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    at = min(at, len(text) - length)
                    break
        return at

    def _release(self, until: int, cuts: bool) -> list[Token]:
        """Take out the tokens that end at or before `until`; with `cuts`, also the part before it of the next."""
        num, length = 0, 0
        for token in self._held:
            size = len(text_of(token))
            if length + size > until:
                break
            num, length = num + 1, length + size
        released = self._held[:num]
        if cuts:
            if length < until:
                released.append(self._text[length:until])
            self._held, self._text = [], ""
        else:
            del self._held[:num]
            self._text = self._text[length:]
        return released
