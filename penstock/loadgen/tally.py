"""The counts of one process of load while it runs: plain numbers and histograms, which `result` adds up."""

from __future__ import annotations

from typing import Any

from penstock.loadgen.histogram import Histogram

LATENCIES = ("ttft", "itl", "e2e", "tpot", "lag")


class Tally:
    """Counts of the measured window. Latencies and verdicts are those of requests that began in it, whenever they
    ended; rates (`num_tokens`, `num_ended`) are of what arrived in it, whenever it began.
    """

    __slots__ = (
        "e2e", "ended_at", "errors", "is_open", "itl", "lag", "num_begun", "num_ended", "num_good", "num_joined",
        "num_ok", "num_reconnects", "num_tokens", "num_wrong", "opened_at", "timeline", "total_ended", "total_failed",
        "total_tokens", "tpot", "ttft",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ttft = Histogram()  # sent (open loop: due) → first token
        self.itl = Histogram()  # between tokens of one answer; 0 for one that came in the same read as another
        self.e2e = Histogram()  # sent (open loop: due) → last byte
        self.tpot = Histogram()  # mean time between the tokens of one answer
        self.lag = Histogram()  # open loop: due → really sent
        self.errors: dict[str, int] = {}
        self.num_begun = self.num_ok = self.num_good = self.num_wrong = 0
        self.num_ended = self.num_tokens = self.num_joined = self.num_reconnects = 0
        self.total_ended = self.total_failed = self.total_tokens = 0  # over the whole run, for progress
        self.is_open = False
        self.opened_at = self.ended_at = 0
        self.timeline: list[tuple[float, int, int]] = []  # seconds since the window opened, tokens, answers

    def error(self, kind: str) -> None:
        self.errors[kind] = self.errors.get(kind, 0) + 1

    def settle(self) -> None:
        """Once, at the end: tokens that came in the same read as another have nothing between them."""
        self.itl.add(0, self.num_joined)

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name).to_dict() for name in LATENCIES},
            **{name: getattr(self, name) for name in COUNTS},
            "errors": self.errors,
            "opened_at": self.opened_at,
            "ended_at": self.ended_at,
            "timeline": self.timeline,
        }


COUNTS = (
    "num_begun",
    "num_ok",
    "num_good",
    "num_wrong",
    "num_ended",
    "num_tokens",
    "num_joined",
    "num_reconnects",
    "total_tokens",
)
