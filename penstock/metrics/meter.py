"""`Meter`: a fold over one request's events, cheap enough to run for every token.

Knows nothing of where the numbers are read.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from penstock.errors import CODES
from penstock.event import Done, Event, Failed, Started, Tokens
from penstock.metrics.table import INTER_TOKEN_S, TABLE

OTHER = "other"


class Family(Protocol):
    """The source of a model's series: `Metrics`."""

    def counter(self, short: str) -> Counter: ...
    def gauge(self, short: str) -> Gauge: ...
    def histogram(self, short: str) -> Histogram: ...


class Spread:
    """A histogram's series, counted in plain numbers until `flush`, for values that arrive by the thousand a second."""

    __slots__ = ("_series", "bounds", "counts", "total")

    def __init__(self, series: Histogram, bounds: tuple[float, ...]) -> None:
        self._series = series
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def flush(self) -> None:
        # prometheus_client has no public way to add many observations at once; a test guards these two names.
        for i, count in enumerate(self.counts):
            if count:
                self.counts[i] = 0
                self._series._buckets[i].inc(count)
        if self.total:
            self._series._sum.inc(self.total)
            self.total = 0.0


class Series:
    """The series of one model, looked up once. What is measured of every request and token waits in plain numbers, at
    a tenth of the cost, for `flush`."""

    __slots__ = (
        "_outcomes", "_relayed", "_running", "family", "gaps", "label", "num_relayed", "num_running",
        "queue_wait", "ttft", "whole",
    )  # fmt: skip

    def __init__(self, family: Family, label: str) -> None:
        def spread(short: str) -> Spread:
            return Spread(family.histogram(short).labels(label), TABLE[short].buckets)

        self.family = family
        self.label = label
        self.queue_wait = spread("queue_wait_seconds")
        self.ttft = spread("time_to_first_token_seconds")
        self.whole = spread("e2e_seconds")
        self.gaps = spread("inter_token_latency_seconds")
        self.num_relayed = self.num_running = 0
        self._running = family.gauge("running").labels(label)
        self._relayed = family.counter("relayed_tokens_total").labels(label)
        self._outcomes: dict[tuple[str, str], Counter] = {}

    def ended(self, endpoint: str, outcome: str) -> None:
        """Counted at once, so that a process that is killed has counted every request that it answered."""
        series = self._outcomes.get((endpoint, outcome))
        if series is None:
            series = self.family.counter("requests_total").labels(self.label, endpoint, outcome)
            self._outcomes[endpoint, outcome] = series
        series.inc()

    def flush(self) -> None:
        """Add what was counted since. In the thread that counts: its numbers have no lock."""
        for spread in (self.queue_wait, self.ttft, self.whole, self.gaps):
            spread.flush()
        self._running.set(self.num_running)
        if self.num_relayed:
            self._relayed.inc(self.num_relayed)
            self.num_relayed = 0


class Meter:
    """Counts one request's events in the metrics. Times are `time.monotonic()` of this process.

    Repeated events are ignored. A stream that was resumed in its middle counts neither queue wait nor time to first
    token. A terminal event or `leave` ends it; only the first of these counts.
    """

    __slots__ = ("_began", "_end", "_endpoint", "_is_over", "_is_running", "_last", "_series", "_start")

    def __init__(self, series: Series, endpoint: str, now: float) -> None:
        self._series = series
        self._endpoint = endpoint
        self._began = now
        self._last = 0.0  # time of the last token; 0.0 before the first
        self._start = 0  # number of tokens before this process saw any
        self._end = 0
        self._is_running = False
        self._is_over = False

    def observe(self, event: Event, now: float) -> None:
        """Count one event that arrived at `now`."""
        # The one path that runs per token: it takes no lock and calls nothing of prometheus_client.
        if type(event) is Tokens and self._last and not self._is_over:
            fresh = event.seq + len(event.tokens) - self._end
            if fresh > 0:
                series = self._series
                gap = now - self._last
                self._last = now
                self._end += fresh
                series.num_relayed += fresh
                gaps = series.gaps
                gaps.total += gap
                gaps.counts[bisect_left(INTER_TOKEN_S, gap if fresh == 1 else gap / fresh)] += fresh
        elif not self._is_over:
            self._turn(event, now)

    def _turn(self, event: Event, now: float) -> None:
        """Count any event but the next token of a flowing stream."""
        if isinstance(event, Started):
            self._started(event.seq, now)
            return
        if event.tokens:
            self._started(event.seq, now)
            if self._last:
                self.observe(Tokens(event.job_id, event.attempt, event.seq, tokens=event.tokens), now)
            elif event.end > self._end:
                self._first_tokens(event.end, now)
        if isinstance(event, Done):
            self._finish("cancelled" if event.finish_reason == "cancelled" else "ok", now)
        elif isinstance(event, Failed):
            self._finish(event.code if event.code in CODES else OTHER, now)

    def _started(self, seq: int, now: float) -> None:
        if self._is_running:
            return
        self._is_running = True
        self._start = self._end = seq
        self._series.num_running += 1
        if seq == 0:
            self._series.queue_wait.add(now - self._began)

    def _first_tokens(self, end: int, now: float) -> None:
        if self._start == 0:
            self._series.ttft.add(now - self._began)
        self._series.num_relayed += end - self._end
        self._last = now
        self._end = end

    def leave(self, now: float | None = None) -> None:
        """The request is over; without an end so far it counts as a disconnect of its client. Safe to repeat."""
        if not self._is_over:
            self._finish("cancelled", time.monotonic() if now is None else now)

    def drop(self) -> None:
        """The request was refused after all: it has no outcome of its own. Safe to repeat."""
        if not self._is_over:
            self._is_over = True
            self._series.num_running -= self._is_running

    def _finish(self, outcome: str, now: float) -> None:
        self._is_over = True
        series = self._series
        series.ended(self._endpoint, outcome)
        if outcome == "ok":
            series.whole.add(now - self._began)
        elif outcome == "cancelled":
            stage = "running" if self._is_running else "queued"
            series.family.counter("cancelled_total").labels(series.label, stage).inc()
        if self._is_running:
            series.num_running -= 1
