"""Log-linear histograms: constant memory, a relative error below 0.4 %, and a sum of two is exact.

Values are whole numbers of at least 0; here always nanoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

_BITS = 7  # 128 buckets an octave
_LINEAR = 2 << _BITS  # below this every value has a bucket of its own


def bucket_of(value: int) -> int:
    if value < _LINEAR:
        return value
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift)


def middle_of(bucket: int) -> float:
    """The value in the middle of a bucket."""
    if bucket < _LINEAR:
        return float(bucket)
    shift = (bucket >> _BITS) - 1
    return ((bucket - (shift << _BITS)) + 0.5) * (1 << shift)


class Histogram:
    """Counts of values. `add` is the only thing on the hot path."""

    __slots__ = ("counts", "max", "num", "sum")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.num = 0
        self.sum = 0
        self.max = 0

    def add(self, value: int, num: int = 1) -> None:
        if value < 256:  # `bucket_of`, in line
            bucket = value if value >= 0 else 0
        else:
            shift = value.bit_length() - 8
            bucket = (shift << 7) + (value >> shift)
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + num
        self.num += num
        self.sum += value * num
        if value > self.max:
            self.max = value

    def merge(self, other: Histogram) -> None:
        for bucket, num in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + num
        self.num += other.num
        self.sum += other.sum
        self.max = max(self.max, other.max)

    @property
    def mean(self) -> float:
        return self.sum / self.num if self.num else 0.0

    def quantile(self, share: float) -> float:
        """The smallest value that at least `share` (0…1) of all values do not exceed; 0 if there are none."""
        wanted = max(1, math.ceil(share * self.num))
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return min(middle_of(bucket), float(self.max))
        return 0.0

    def cumulative(self) -> Iterator[tuple[float, float]]:
        """Pairs of a value and the share of all values up to it, ascending."""
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            yield min(middle_of(bucket), float(self.max)), seen / self.num

    def to_dict(self) -> dict[str, object]:
        return {"counts": {str(bucket): num for bucket, num in self.counts.items()}, "sum": self.sum, "max": self.max}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Histogram:
        """The inverse of `to_dict`. Raises `TypeError` and `ValueError` for anything else."""
        found = cls()
        counts, total, most = data.get("counts"), data.get("sum"), data.get("max")
        if not isinstance(counts, dict) or not isinstance(total, int) or not isinstance(most, int):
            raise TypeError("no histogram")
        found.counts = {int(bucket): int(num) for bucket, num in counts.items()}
        found.num, found.sum, found.max = sum(found.counts.values()), total, most
        return found
