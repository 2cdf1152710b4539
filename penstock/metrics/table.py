"""Every metric that Penstock has, with its unit, labels and help: one table, and the page that shows it.

Knows nothing of how they are counted. Base units; buckets for LLMs: tokens come after milliseconds, answers after
minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INTER_TOKEN_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0),
)
_FIRST_TOKEN_S = (
    *(0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_WAIT_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_WHOLE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)
_WINDOW_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0)
_TRIP_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_SIZE = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


# How processes on one port add up: each its part, or one value that all of them see.
Merge = Literal["livesum", "livemostrecent", "livemax"]


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. Buckets make it a histogram, `merge` a gauge, neither a counter."""

    name: str
    unit: str
    labels: tuple[str, ...]
    on: str
    help: str
    buckets: tuple[float, ...] = ()
    merge: Merge | None = None

    @property
    def kind(self) -> str:
        return "histogram" if self.buckets else "gauge" if self.merge else "counter"


_M = ("model",)
_EVERY = "every process"
# fmt: off
_SPECS = (
    Spec("penstock_requests_total", "requests", ("model", "endpoint", "outcome"), "gateway",
         "Requests that ended, by outcome: ok, cancelled, or the code of the error."),
    Spec("penstock_rejected_total", "requests", ("reason",), "gateway",
         "Requests refused before any worker had them, by the code of the error."),
    Spec("penstock_cancelled_total", "requests", ("model", "stage"), "gateway",
         "Requests cancelled while queued or running."),
    Spec("penstock_queue_depth", "requests", (), "gateway",
         "Requests that wait in the queue, as last seen.", merge="livemostrecent"),
    Spec("penstock_workers_alive", "workers", (), "gateway",
         "Workers with a valid lease, as last seen.", merge="livemostrecent"),
    Spec("penstock_model_up", "1", _M, "gateway",
         "1 while a live worker can run the model, as last seen; 0 without one, or while all its engines are down.",
         merge="livemostrecent"),
    Spec("penstock_running", "requests", _M, "gateway",
         "Requests that a worker has started and that have not ended.", merge="livesum"),
    Spec("penstock_open_streams", "streams", (), "gateway",
         "Streamed answers that are open.", merge="livesum"),
    Spec("penstock_queue_wait_seconds", "seconds", _M, "gateway",
         "From the arrival of a request to its start at a worker.", _WAIT_S),
    Spec("penstock_time_to_first_token_seconds", "seconds", _M, "gateway",
         "From the arrival of a request to its first token.", _FIRST_TOKEN_S),
    Spec("penstock_inter_token_latency_seconds", "seconds", _M, "gateway",
         "Between two tokens of one request; tokens that came together share the time before them.", INTER_TOKEN_S),
    Spec("penstock_e2e_seconds", "seconds", _M, "gateway",
         "From the arrival of a request to its end, of those with outcome ok.", _WHOLE_S),
    Spec("penstock_relayed_tokens_total", "tokens", _M, "gateway",
         "Completion tokens that reached a gateway; what workers generated minus this was never delivered."),
    Spec("penstock_log_reads_total", "reads", ("reason",), "gateway",
         "Readings of a request's log to repair or check its stream, by reason."),
    Spec("penstock_keys_stale_seconds", "seconds", (), "gateway",
         "For how long the file of API keys could not be read again, so that a revoked key may still work; else 0.",
         merge="livemax"),
    Spec("penstock_batch_size", "requests", _M, "worker",
         "Requests in a batch when it was sealed.", _SIZE),
    Spec("penstock_batch_wait_seconds", "seconds", _M, "worker",
         "From the first request of a batch to its sealing.", _WINDOW_S),
    Spec("penstock_prompt_tokens_total", "tokens", _M, "worker",
         "Prompt tokens of finished generations."),
    Spec("penstock_completion_tokens_total", "tokens", _M, "worker",
         "Completion tokens that were generated."),
    Spec("penstock_reruns_total", "requests", _M, "worker",
         "Answers that a worker began again, as it could not continue them and no client had read any of them."),
    Spec("penstock_slots", "slots", (), "worker",
         "Sequence slots, each room for one running request.", merge="livesum"),
    Spec("penstock_slots_free", "slots", (), "worker",
         "Sequence slots that are free.", merge="livesum"),
    Spec("penstock_upstream_requests_total", "requests", (*_M, "upstream", "outcome"), "worker",
         "Requests to an upstream, by how they ended: ok, cancelled, or what was wrong (docs/backends.md)."),
    Spec("penstock_upstream_first_token_seconds", "seconds", (*_M, "upstream"), "worker",
         "From sending a request to an upstream to its first token.", _FIRST_TOKEN_S),
    Spec("penstock_upstream_fallbacks_total", "requests", (*_M, "tier", "reason"), "worker",
         "Requests that passed over a tier of upstreams for a lower one, by that tier and the reason."),
    Spec("penstock_upstream_up", "1", (*_M, "upstream"), "worker",
         "1 while an upstream is used, 0 while it is ejected.", merge="livemostrecent"),
    Spec("penstock_upstream_open_streams", "streams", (*_M, "upstream"), "worker",
         "Requests to an upstream that are open.", merge="livesum"),
    Spec("penstock_store_round_trip_seconds", "seconds", ("verb",), _EVERY,
         "Round trips to Redis, by verb.", _TRIP_S),
    Spec("penstock_store_errors_total", "errors", ("kind",), _EVERY,
         "Round trips to Redis that failed, commands that it refused and data that could not be used, by kind."),
    Spec("penstock_event_loop_lag_seconds", "seconds", (), _EVERY,
         "How much later than asked the event loop woke a timer; it is blocked that long.", _LAG_S),
    Spec("penstock_log_lines_dropped_total", "lines", (), _EVERY,
         "Log lines that were dropped because stderr was full, closed or failed."),
    Spec("penstock_build_info", "1", ("version", "python"), _EVERY,
         "Always 1; the labels have the versions of the process.", merge="livemax"),
)
# fmt: on
TABLE: dict[str, Spec] = {spec.name.removeprefix("penstock_"): spec for spec in _SPECS}


def render_markdown() -> str:
    """`docs/metrics.md`, whole; `make docs` writes it."""
    lines = [
        "# Metrics",
        "",
        "For operators: every metric, its labels and its buckets; queries are in [monitoring.md](monitoring.md). Every",
        "process serves them at `/metrics`, in Prometheus' form. Generated from `penstock/metrics/table.py` by",
        "`make docs`; do not edit.",
        "",
        "Units are base units. `model` is a configured or announced name, else `other`. On gateways `outcome` and the",
        "`reason` of refusals are `ok`, `cancelled` or an error code of `penstock/errors.py`. Gateway processes",
        "on one port answer with their sum; it includes tokens of the other processes within half a second.",
        "",
        "| name | type | unit | labels | on | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for spec in TABLE.values():
        labels = ", ".join(f"`{label}`" for label in spec.labels) or "–"
        lines.append(f"| `{spec.name}` | {spec.kind} | {spec.unit} | {labels} | {spec.on} | {spec.help} |")
    lines += ["", "## Buckets", "", "| histogram | upper bounds |", "|---|---|"]
    for spec in TABLE.values():
        if spec.buckets:
            lines.append(f"| `{spec.name}` | {', '.join(f'{bound:g}' for bound in spec.buckets)} |")
    lines += ["", "In addition, a single process shows its own `process_*` metrics (memory, CPU, descriptors).", ""]
    return "\n".join(lines)
