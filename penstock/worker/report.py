"""A worker's report of a finished job: one log line, and its tokens in the metrics. Never the prompt."""

from __future__ import annotations

import logging
import time

from penstock.event import Done, Failed, Terminal, Usage
from penstock.logs import log_fields
from penstock.metrics import Metrics
from penstock.worker.running_job import RunningJob

logger = logging.getLogger("penstock.worker")


def report(running: RunningJob, end: Terminal, metrics: Metrics | None) -> None:
    """Call it when the `end` of a job is written. `queue_ms` is from the job's creation until its batch began."""
    now = time.monotonic()
    job, claim = running.claim.job, running.claim
    usage = end.usage if isinstance(end, Done) else Usage(0, running.num)
    began = running.started_at or now
    fields = {
        "request_id": job.id,
        "caller": job.caller,
        "model": job.model,
        "outcome": end.code if isinstance(end, Failed) else end.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "queue_ms": round(1000 * (claim.queued_s + began - running.claimed_at), 2),
        "generate_ms": round(1000 * (now - began), 2),
        "attempt": claim.attempt,
    }
    log_fields(logger, logging.WARNING if isinstance(end, Failed) else logging.INFO, "finished", fields)
    if metrics is not None:
        num = running.num - running.num_given if job.generates else 0  # an embedding is a token of the log only
        metrics.generated(job.model, usage.prompt_tokens, num)
