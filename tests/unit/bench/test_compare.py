"""The table of two checkouts."""

from __future__ import annotations

from bench.compare import row


def test_a_row_has_the_medians_of_both_trees() -> None:
    runs = {
        "that": [{"requests_per_s": rate, "gateway": 500.0, "redis": 200.0} for rate in (900.0, 1000.0, 1900.0)],
        "this": [{"requests_per_s": 800.0, "gateway": cost, "redis": 100.0} for cost in (1.0, 600.0, 700.0)],
    }
    line = "| json 32 | penstock | 1,000 -> 800 | -20 % | gateway 500 -> 600, redis 200 -> 100 |"
    assert row("json 32", "penstock", runs) == line
