"""Numbers drawn from a key, one after the other: the same in every version of Python, as `random` does not promise."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX = 0xBF58476D1CE4E5B9


class Draw:
    def __init__(self, key: int) -> None:
        self._at = key & _MASK

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1; `bound` may be larger than 64 bits, the number then is not."""
        self._at = (self._at + _STEP) & _MASK
        mixed = (self._at ^ self._at >> 30) * _MIX & _MASK
        return (mixed ^ mixed >> 31) % bound

    def ordered(self, num: int) -> list[int]:
        """The numbers from 0 to `num` - 1, beginning with a drawn one."""
        first = self.below(num) if num else 0
        return [*range(first, num), *range(first)]
