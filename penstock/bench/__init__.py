"""`penstock bench`: load on a running server, every answer checked, latencies and throughput of it.

Processes of its own make the load (`engine`, over raw HTTP/1.1); the caller's process starts them, shows progress and
merges what they counted (`runner`). Knows HTTP APIs; knows nothing of queues and workers.
"""

from penstock.bench.histogram import Histogram
from penstock.bench.plan import Plan, parse_slo
from penstock.bench.prompts import from_file, synthetic
from penstock.bench.result import Result
from penstock.bench.runner import Progress, run

__all__ = ["Histogram", "Plan", "Progress", "Result", "from_file", "parse_slo", "run", "synthetic"]
