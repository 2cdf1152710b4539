"""What is counted, for one request and for many; that labels stay few; and that several processes answer as one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from penstock.errors import CODES
from penstock.event import Done, Event, Failed, Started, Tokens
from penstock.metrics import TABLE, Meter, Metrics, render_markdown

ROOT = Path(__file__).parents[3]
ENDPOINT = "/v1/generate"
PROMISED = {
    "penstock_requests_total": ("model", "endpoint", "outcome"),
    "penstock_queue_depth": (),
    "penstock_running": ("model",),
    "penstock_queue_wait_seconds": ("model",),
    "penstock_time_to_first_token_seconds": ("model",),
    "penstock_inter_token_latency_seconds": ("model",),
    "penstock_e2e_seconds": ("model",),
    "penstock_batch_size": ("model",),
}


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics.expose()[0]).get((f"penstock_{name}", tuple(sorted(labels.items()))))


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return Metrics(models=["mock"])


@pytest.fixture
def meter(metrics: Metrics) -> Meter:
    return metrics.meter("mock", ENDPOINT, now=100.0)


def tokens(seq: int, count: int = 1) -> Tokens:
    return Tokens("g.1", 1, seq, tokens=("x",) * count)


def done(seq: int, count: int = 0, reason: Any = "length") -> Done:
    return Done("g.1", 1, seq, tokens=("x",) * count, finish_reason=reason)


# ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_request(metrics: Metrics, meter: Meter) -> None:
    meter.observe(Started("g.1", 1, 0), 100.02)
    assert value(metrics, "running", model="mock") == 1
    for i in range(3):
        meter.observe(tokens(i), 100.1 + i * 0.008)
    meter.observe(done(3, 1), 101.116)
    meter.leave()
    assert value(metrics, "requests_total", model="mock", endpoint=ENDPOINT, outcome="ok") == 1
    assert value(metrics, "running", model="mock") == 0
    assert value(metrics, "queue_wait_seconds_sum", model="mock") == pytest.approx(0.02)
    assert value(metrics, "time_to_first_token_seconds_sum", model="mock") == pytest.approx(0.1)
    assert value(metrics, "inter_token_latency_seconds_count", model="mock") == 3
    assert value(metrics, "inter_token_latency_seconds_sum", model="mock") == pytest.approx(1.016)
    assert value(metrics, "inter_token_latency_seconds_bucket", model="mock", le="0.0075") == 0
    assert value(metrics, "inter_token_latency_seconds_bucket", model="mock", le="0.01") == 2
    assert value(metrics, "inter_token_latency_seconds_bucket", model="mock", le="1.0") == 3
    assert value(metrics, "e2e_seconds_sum", model="mock") == pytest.approx(1.116)
    assert value(metrics, "relayed_tokens_total", model="mock") == 4
    assert value(metrics, "cancelled_total", model="mock", stage="running") is None


def test_tokens_that_come_together_share_the_time_before_them(metrics: Metrics, meter: Meter) -> None:
    meter.observe(Started("g.1", 1, 0), 100.0)
    meter.observe(tokens(0, 5), 100.1)
    meter.observe(tokens(5, 4), 100.14)
    assert value(metrics, "inter_token_latency_seconds_count", model="mock") == 4
    assert value(metrics, "inter_token_latency_seconds_bucket", model="mock", le="0.015") == 4
    assert value(metrics, "inter_token_latency_seconds_sum", model="mock") == pytest.approx(0.04)
    assert value(metrics, "relayed_tokens_total", model="mock") == 9


def test_the_bound_of_a_bucket_belongs_to_it(metrics: Metrics, meter: Meter) -> None:
    meter.observe(tokens(0), 1.0)
    meter.observe(tokens(1), 1.5)
    assert value(metrics, "inter_token_latency_seconds_bucket", model="mock", le="0.25") == 0
    assert value(metrics, "inter_token_latency_seconds_bucket", model="mock", le="0.5") == 1


def test_repeated_events_are_counted_once(metrics: Metrics, meter: Meter) -> None:
    meter.observe(Started("g.1", 1, 0), 100.0)
    for event in (tokens(0, 3), tokens(0, 3), tokens(1, 2), Started("g.1", 2, 3), tokens(2, 2), done(4), done(4)):
        meter.observe(event, 101.0)
    assert value(metrics, "relayed_tokens_total", model="mock") == 4
    assert value(metrics, "queue_wait_seconds_count", model="mock") == 1
    assert value(metrics, "requests_total", model="mock", endpoint=ENDPOINT, outcome="ok") == 1


def test_a_resumed_stream_has_no_first_token_and_no_wait(metrics: Metrics, meter: Meter) -> None:
    meter.observe(tokens(50, 2), 100.1)
    meter.observe(done(52, 1), 100.2)
    assert value(metrics, "queue_wait_seconds_count", model="mock") == 0
    assert value(metrics, "time_to_first_token_seconds_count", model="mock") == 0
    assert value(metrics, "relayed_tokens_total", model="mock") == 3
    assert value(metrics, "running", model="mock") == 0


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (done(0), "ok"),
        (done(0, reason="cancelled"), "cancelled"),
        (Failed("g.1", 1, 0, code="backend_error", message="x"), "backend_error"),
        (Failed("g.1", 1, 0, code="cancelled", message="x"), "cancelled"),
        (Failed("g.1", 1, 0, code="of_a_newer_peer", message="x"), "other"),
    ],
)
def test_the_outcome_is_a_known_word(metrics: Metrics, meter: Meter, end: Event, outcome: str) -> None:
    meter.observe(end, 101.0)
    meter.leave()
    assert value(metrics, "requests_total", model="mock", endpoint=ENDPOINT, outcome=outcome) == 1
    assert value(metrics, "running", model="mock") == 0


def test_a_client_that_leaves(metrics: Metrics, meter: Meter) -> None:
    meter.leave()
    meter.leave()
    running = metrics.meter("mock", ENDPOINT)
    running.observe(Started("g.2", 1, 0), 100.0)
    running.leave()
    assert value(metrics, "cancelled_total", model="mock", stage="queued") == 1
    assert value(metrics, "cancelled_total", model="mock", stage="running") == 1
    assert value(metrics, "requests_total", model="mock", endpoint=ENDPOINT, outcome="cancelled") == 2


def test_a_refusal_is_an_outcome_and_a_reason(metrics: Metrics) -> None:
    metrics.refused("mock", ENDPOINT, "queue_full")
    metrics.refused("", "", "invalid_api_key")
    metrics.refused("", "", "made up")
    assert value(metrics, "requests_total", model="mock", endpoint=ENDPOINT, outcome="queue_full") == 1
    assert value(metrics, "rejected_total", reason="queue_full") == 1
    assert value(metrics, "rejected_total", reason="invalid_api_key") == 1
    assert value(metrics, "rejected_total", reason="other") == 1


_EVENTS = st.one_of(
    st.builds(Started, st.just("g.1"), st.integers(1, 3), st.integers(0, 5)),
    st.builds(tokens, st.integers(0, 8), st.integers(1, 3)),
    st.builds(done, st.integers(0, 8), st.integers(0, 2), st.sampled_from(["stop", "length", "cancelled"])),
    st.builds(
        lambda seq, code: Failed("g.1", 1, seq, code=code, message="x"), st.integers(0, 8), st.sampled_from([*CODES])
    ),
)


@given(st.lists(_EVENTS, max_size=12))
def test_the_counts_add_up_for_any_events(events: list[Event]) -> None:
    metrics = Metrics(CollectorRegistry(), models=["mock"])
    meter = metrics.meter("mock", ENDPOINT, now=0.0)
    for i, event in enumerate(events):
        meter.observe(event, 1.0 + i)
    meter.leave()
    found = samples(metrics.expose()[0])
    assert sum(count for (name, _), count in found.items() if name == "penstock_requests_total") == 1
    labels = (("model", "mock"),)
    assert found["penstock_running", labels] == 0
    inner = found["penstock_inter_token_latency_seconds_count", labels]
    assert inner <= found["penstock_relayed_tokens_total", labels] <= 11


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_names_that_were_promised_are_there() -> None:
    for name, labels in PROMISED.items():
        assert TABLE[name.removeprefix("penstock_")].labels == labels


def test_every_metric_has_a_unit_in_its_name_and_a_help() -> None:
    for spec in TABLE.values():
        assert spec.name.startswith("penstock_")
        assert spec.help.endswith(".")
        assert (spec.unit == "seconds") == ("_seconds" in spec.name)
        assert (spec.kind == "counter") == spec.name.endswith("_total")


def test_every_verb_shows(metrics: Metrics) -> None:
    metrics.pool(7, 3)
    metrics.batch("mock", 8, 0.012)
    metrics.generated("mock", 10, 20)
    metrics.worker_slots(64, 60)
    metrics.round_trip("emit", 0.0004)
    metrics.store_error("timeout")
    metrics.log_read("gap")
    metrics.loop_lag(0.003)
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    assert value(metrics, "queue_depth") == 7
    assert value(metrics, "workers_alive") == 3
    assert value(metrics, "batch_size_bucket", model="mock", le="8.0") == 1
    assert value(metrics, "batch_wait_seconds_sum", model="mock") == pytest.approx(0.012)
    assert value(metrics, "prompt_tokens_total", model="mock") == 10
    assert value(metrics, "completion_tokens_total", model="mock") == 20
    assert value(metrics, "slots") == 64
    assert value(metrics, "slots_free") == 60
    assert value(metrics, "store_round_trip_seconds_count", verb="emit") == 1
    assert value(metrics, "store_errors_total", kind="timeout") == 1
    assert value(metrics, "log_reads_total", reason="gap") == 1
    assert value(metrics, "event_loop_lag_seconds_bucket", le="0.005") == 1
    assert value(metrics, "open_streams") == 1


def test_a_gauge_without_a_value_is_not_shown(metrics: Metrics) -> None:
    assert value(metrics, "queue_depth") is None
    assert value(metrics, "slots") is None


def test_announced_models_become_labels(metrics: Metrics) -> None:
    metrics.meter("later", ENDPOINT).leave()
    metrics.pool(0, 1, ["later"])
    metrics.meter("later", ENDPOINT).leave()
    assert value(metrics, "requests_total", model="other", endpoint=ENDPOINT, outcome="cancelled") == 1
    assert value(metrics, "requests_total", model="later", endpoint=ENDPOINT, outcome="cancelled") == 1


def test_series_stay_few_whatever_names_come(metrics: Metrics) -> None:
    def throw(number: int) -> None:
        name = f"model-{number}"
        meter = metrics.meter(name, f"/{number}")
        meter.observe(Started("g.1", 1, 0), 101.0)
        meter.observe(tokens(0), 101.0)
        meter.observe(Failed("g.1", 1, 1, code=name, message=name), 102.0)
        metrics.batch(name, number, 0.01)
        metrics.generated(name, 1, 1)
        metrics.refused(name, f"/{number}", name)
        metrics.round_trip(name, 0.1)
        metrics.store_error(name)
        metrics.log_read(name)

    for number in range(1000):
        throw(number)
    before = set(samples(metrics.expose()[0]))
    for number in range(1000, 10_000):
        throw(number)
    assert set(samples(metrics.expose()[0])) == before
    assert len(before) < 1500


def test_models_have_a_bound_too(metrics: Metrics) -> None:
    metrics.know(f"model-{number}" for number in range(10_000))
    for number in range(0, 10_000, 10):
        metrics.generated(f"model-{number}", 1, 1)
    labels = {key for key in samples(metrics.expose()[0]) if key[0] == "penstock_prompt_tokens_total"}
    assert len(labels) < 256


def test_the_form_is_negotiated(metrics: Metrics) -> None:
    plain, plain_type = metrics.expose()
    assert plain_type.startswith("text/plain; version=0.0.4")
    assert b"_created" not in plain
    modern, modern_type = metrics.expose("application/openmetrics-text; version=1.0.0")
    assert modern_type.startswith("application/openmetrics-text")
    assert modern.endswith(b"# EOF\n")


def test_the_page_is_fresh() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == render_markdown(), "stale: run `make docs`"


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────

CHILD = """
import sys
from penstock.event import Done, Started, Tokens
from penstock.metrics import Metrics

metrics = Metrics(models=["mock"])
print("up", flush=True)
for line in sys.stdin:
    match line.split():
        case ["request"]:
            meter = metrics.meter("mock", "/v1/generate", now=1.0)
            meter.observe(Started("g.1", 1, 0), 1.1)
            for i in range(5):
                meter.observe(Tokens("g.1", 1, i, tokens=("x",)), 1.2 + i * 0.01)
            meter.observe(Done("g.1", 1, 5, finish_reason="stop"), 2.0)
        case ["start"]:
            metrics.meter("mock", "/v1/generate", now=1.0).observe(Started("g.2", 1, 0), 1.1)
        case ["pool", depth, workers]:
            metrics.pool(int(depth), int(workers))
        case ["lag"]:
            metrics.loop_lag(0.001)
        case ["expose"]:
            text = metrics.expose()[0]
            print(len(text), flush=True)
            sys.stdout.write(text.decode())
            sys.stdout.flush()
            continue
    print("ok", flush=True)
"""


class Child:
    """A process that counts what it is told to."""

    def __init__(self, directory: Path) -> None:
        environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
        )
        self.pid = self._process.pid
        assert self._line() == "up"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def tell(self, *commands: str) -> None:
        for command in commands:
            self._write(command)
            assert self._line() == "ok"

    def _write(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def expose(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        self._write("expose")
        assert self._process.stdout is not None
        return samples(self._process.stdout.read(int(self._line())))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Processes:
    """The parent's part, in a process of its own kind: a directory, children, and the news of their deaths."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []
        self._parent("prepare_multiprocess(directory)")

    def _parent(self, call: str) -> None:
        code = f"import sys; from penstock.metrics import *; directory = sys.argv[1]; {call}"
        subprocess.run([sys.executable, "-c", code, str(self.directory)], check=True, cwd=ROOT)

    def start(self) -> Child:
        child = Child(self.directory)
        self.children.append(child)
        return child

    def kill(self, child: Child) -> None:
        child.kill()
        self.children.remove(child)
        self._parent(f"mark_dead({child.pid}, directory)")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    directory = tmp_path / "metrics"
    directory.mkdir()
    (directory / "counter_1.db").write_bytes(b"left by an earlier run")
    made = Processes(directory)
    yield made
    for child in made.children:
        child.kill()


MOCK = (("model", "mock"),)
OK = ("penstock_requests_total", (("endpoint", ENDPOINT), ("model", "mock"), ("outcome", "ok")))
GAPS = ("penstock_inter_token_latency_seconds_count", MOCK)
RUNNING = ("penstock_running", MOCK)
DEPTH: tuple[str, tuple[tuple[str, str], ...]] = ("penstock_queue_depth", ())


@pytest.mark.timeout(30)
def test_any_process_answers_for_all(processes: Processes) -> None:
    first, second = processes.start(), processes.start()
    first.tell("request", "start", "pool 7 2")
    second.tell("request", "request", "start", "start", "pool 5 2", "lag")
    seen = first.expose()
    assert seen[OK] == 3
    assert seen[GAPS] == 12
    assert seen[RUNNING] == 3  # each process' own, added
    assert seen[DEPTH] == 5  # one queue, as the last one saw it
    first.tell("pool 9 2")
    assert second.expose()[DEPTH] == 9
    assert second.expose() == first.expose()


@pytest.mark.timeout(30)
def test_the_counts_of_a_dead_process_stay_and_its_gauges_go(processes: Processes) -> None:
    first, second = processes.start(), processes.start()
    first.tell("request", "start")
    second.tell("request", "start", "lag")
    processes.kill(second)
    seen = first.expose()
    assert (seen[OK], seen[GAPS], seen[RUNNING]) == (2, 8, 1)


@pytest.mark.timeout(30)
def test_restarts_leave_neither_files_nor_gaps(processes: Processes) -> None:
    stays = processes.start()
    stays.tell("request", "lag")
    for round_ in range(3):
        child = processes.start()
        child.tell("request", "lag")
        assert child.expose()[OK] == 2 + round_
        processes.kill(child)
        assert stays.expose()[OK] == 2 + round_
        assert stays.expose()[GAPS] == 4 * (2 + round_)
    assert len(list(processes.directory.glob("counter_*.db"))) == 2
    assert len(list(processes.directory.glob("dead-*"))) == 1
