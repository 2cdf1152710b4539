"""`Metrics`: one process' metrics, and the methods with which its parts count.

Label values come from configured or announced names, else they are `other`: the number of series has a bound.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from penstock import logs
from penstock.errors import CODES
from penstock.metrics.meter import OTHER, Meter, Series
from penstock.metrics.processes import MULTIPROCESS_DIR, adopt, merged
from penstock.metrics.table import TABLE

MAX_MODELS = 256
MAX_LEARNED = 64


class Metrics:
    """One process' metrics. `models` are the names that may be labels; `know` adds announced ones."""

    def __init__(self, registry: CollectorRegistry | None = None, models: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, and of no use
        self._directory = os.environ.get(MULTIPROCESS_DIR)
        if self._directory:
            adopt(self._directory)
        self.registry = registry if registry is not None else CollectorRegistry()
        if registry is None and not self._directory:
            ProcessCollector(registry=self.registry)
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._known: set[str] = set()
        self._models_seen: set[str] = set()
        self._series: dict[str, Series] = {}
        self._verbs: dict[str, Histogram] = {}
        self._learned: dict[str, set[str]] = {}
        self._num_dropped = 0
        self._num_open: int | None = None  # None until the first stream: no series until then
        self._generated: dict[str, tuple[Counter, Counter]] = {}
        for short, spec in TABLE.items():
            # A gauge without labels would read 0 until it is set: it appears when it is first set.
            if spec.labels or not spec.merge:
                self._make(short)
        self.know(models)
        self.gauge("build_info").labels(_version(), platform.python_version()).set(1)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def know(self, models: Iterable[str]) -> None:
        """These models are served: their names may be labels. Beyond `MAX_MODELS` they are `other`."""
        for model in models:
            if model not in self._known and len(self._known) < MAX_MODELS:
                self._known.add(model)

    def _learn(self, kind: str, value: str) -> str:
        """A label value from our own code (a verb, an endpoint), never from a request; bounded all the same."""
        seen = self._learned.setdefault(kind, set())
        if value in seen:
            return value
        if len(seen) >= MAX_LEARNED:
            return OTHER
        seen.add(value)
        return value

    def _label(self, model: str) -> str:
        return model if model in self._known else OTHER

    def _make(self, short: str) -> Counter | Gauge | Histogram:
        spec = TABLE[short]
        made: Counter | Gauge | Histogram
        if spec.buckets:
            made = Histogram(spec.name, spec.help, spec.labels, registry=self.registry, buckets=spec.buckets)
        elif spec.merge:
            made = Gauge(spec.name, spec.help, spec.labels, registry=self.registry, multiprocess_mode=spec.merge)
        else:
            made = Counter(spec.name, spec.help, spec.labels, registry=self.registry)
        self._made[short] = made
        return made

    def counter(self, short: str) -> Counter:
        made = self._made[short]
        assert isinstance(made, Counter)
        return made

    def gauge(self, short: str) -> Gauge:
        made = self._made.get(short) or self._make(short)
        assert isinstance(made, Gauge)
        return made

    def histogram(self, short: str) -> Histogram:
        made = self._made[short]
        assert isinstance(made, Histogram)
        return made

    # ── from a gateway ───────────────────────────────────────────────────────────────────────────────────────────

    def meter(self, model: str, endpoint: str, now: float | None = None) -> Meter:
        """Begin to measure one request. `endpoint` is the route's own path, never the request's."""
        label = self._label(model)
        series = self._series.get(label)
        if series is None:
            series = self._series[label] = Series(self, label)
        return Meter(series, self._learn("endpoint", endpoint), time.monotonic() if now is None else now)

    def refused(self, model: str, endpoint: str, code: str) -> None:
        """A request that a gateway refused with the error `code`, before any worker could see it."""
        reason = code if code in CODES else OTHER
        self.counter("rejected_total").labels(reason).inc()
        if endpoint:
            self.counter("requests_total").labels(self._label(model), self._learn("endpoint", endpoint), reason).inc()

    def pool(
        self, depth: int, workers_alive: int, models: Collection[str] = (), without_engine: Collection[str] = ()
    ) -> None:
        self.gauge("queue_depth").set(depth)
        self.gauge("workers_alive").set(workers_alive)
        self.know(models)
        up = {self._label(model) for model in models if model not in without_engine}
        self._models_seen |= {self._label(model) for model in models}
        for label in self._models_seen:
            self.gauge("model_up").labels(label).set(1.0 if label in up else 0.0)

    def keys_stale(self, seconds: float) -> None:
        self.gauge("keys_stale_seconds").set(seconds)

    def stream_opened(self) -> None:
        self._num_open = (self._num_open or 0) + 1

    def stream_closed(self) -> None:
        self._num_open = (self._num_open or 0) - 1

    def log_read(self, reason: str) -> None:
        self.counter("log_reads_total").labels(self._learn("reason", reason)).inc()

    # ── from a worker ────────────────────────────────────────────────────────────────────────────────────────────

    def batch(self, model: str, size: int, wait_s: float) -> None:
        label = self._label(model)
        self.histogram("batch_size").labels(label).observe(size)
        self.histogram("batch_wait_seconds").labels(label).observe(wait_s)

    def generated(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        label = self._label(model)
        counters = self._generated.get(label)
        if counters is None:
            names = "prompt_tokens_total", "completion_tokens_total"
            prompt, completion = (self.counter(name).labels(label) for name in names)
            counters = self._generated[label] = prompt, completion
        counters[0].inc(prompt_tokens)
        counters[1].inc(completion_tokens)

    def rerun(self, model: str) -> None:
        """A worker has begun an answer again."""
        self.counter("reruns_total").labels(self._label(model)).inc()

    def worker_slots(self, total: int, free: int) -> None:
        self.gauge("slots").set(total)
        self.gauge("slots_free").set(free)

    def report(self, model: str, metric: str, labels: Mapping[str, str], value: float) -> None:
        """A backend's own metric: one of the table whose first label is the model."""
        spec = TABLE[metric]
        values = [self._label(model), *(self._learn(f"{metric} {name}", labels[name]) for name in spec.labels[1:])]
        if spec.kind == "counter":
            self.counter(metric).labels(*values).inc(value)
        elif spec.kind == "gauge":
            self.gauge(metric).labels(*values).set(value)
        else:
            self.histogram(metric).labels(*values).observe(value)

    # ── from every process ───────────────────────────────────────────────────────────────────────────────────────

    def round_trip(self, verb: str, seconds: float) -> None:
        series = self._verbs.get(verb)
        if series is None:
            label = self._learn("verb", verb)
            series = self.histogram("store_round_trip_seconds").labels(label)
            if label == verb:
                self._verbs[verb] = series
        series.observe(seconds)

    def store_error(self, kind: str) -> None:
        self.counter("store_errors_total").labels(self._learn("kind", kind)).inc()

    def loop_lag(self, seconds: float) -> None:
        """Called about twice a second; also shows the other processes what was counted in bulk since."""
        self.histogram("event_loop_lag_seconds").observe(seconds)
        if self._directory:
            self.flush()

    # ── what Prometheus reads ────────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Add what was counted in bulk. In the thread that observes, as its lists have no lock."""
        for series in self._series.values():
            series.flush()
        if (num := logs.num_dropped()) > self._num_dropped:
            self.counter("log_lines_dropped_total").inc(num - self._num_dropped)
            self._num_dropped = num
        if self._num_open is not None:
            self.gauge("open_streams").set(self._num_open)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type, in the form that the `Accept` header asks for. Any thread."""
        encode, content_type = choose_encoder(accept)
        if not self._directory:
            return encode(self.registry), content_type
        return merged(self._directory, encode), content_type

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """`flush` and `render` in one."""
        self.flush()
        return self.render(accept)


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a tree that is not installed
        return "unknown"
