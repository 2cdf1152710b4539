"""The histogram of `penstock bench`: quantiles close to the true ones, sums exact, values that survive the wire."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.loadgen import Histogram
from penstock.loadgen.histogram import bucket_of, middle_of

VALUES = st.lists(st.integers(0, 10**12), min_size=1, max_size=300)


def _of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(st.integers(0, 10**15))
def test_a_bucket_is_narrow_and_holds_its_value(value: int) -> None:
    assert abs(middle_of(bucket_of(value)) - value) <= max(0.5, 0.004 * value)


@given(st.integers(0, 10**12))
def test_buckets_are_in_order(value: int) -> None:
    assert bucket_of(value) <= bucket_of(value + 1) <= bucket_of(value) + 1


@given(VALUES, st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_a_hundredth_of_the_true_one(values: list[int], share: float) -> None:
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert abs(_of(values).quantile(share) - true) <= max(0.5, 0.01 * true)


@given(VALUES, VALUES)
def test_a_merge_is_as_if_one_had_counted_all(left: list[int], right: list[int]) -> None:
    merged = _of(left)
    merged.merge(_of(right))
    whole = _of(left + right)
    assert (merged.counts, merged.num, merged.sum, merged.max) == (whole.counts, whole.num, whole.sum, whole.max)


@given(VALUES)
def test_it_survives_the_wire(values: list[int]) -> None:
    histogram = _of(values)
    again = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    assert (again.counts, again.num, again.sum, again.max) == (
        histogram.counts, histogram.num, histogram.sum, histogram.max,
    )  # fmt: skip


def test_an_invalid_histogram_is_refused() -> None:
    with pytest.raises(TypeError):
        Histogram.from_dict({"counts": [], "sum": 1, "max": 1})


def test_an_empty_one_has_no_quantiles() -> None:
    assert (Histogram().quantile(0.5), Histogram().mean, list(Histogram().cumulative())) == (0.0, 0.0, [])


def test_cumulative_shares_end_at_one() -> None:
    shares = [share for _, share in _of([1, 5, 1000, 10**9]).cumulative()]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_many_of_one_value_at_once() -> None:
    histogram = Histogram()
    histogram.add(0, 99)
    histogram.add(1_000_000)
    assert (histogram.num, histogram.quantile(0.5), histogram.max) == (100, 0.0, 1_000_000)
