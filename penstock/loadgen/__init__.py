"""`penstock bench`: load on a running server, every answer checked, latencies and throughput of it.

Processes of its own make the load (`engine`, over raw HTTP/1.1); the caller's process starts them, shows progress and
merges what they counted (`runner`). Knows HTTP APIs; knows nothing of queues and workers.
"""

from penstock.loadgen.histogram import Histogram
from penstock.loadgen.plan import Plan, parse_slo
from penstock.loadgen.prompts import from_file, synthetic
from penstock.loadgen.result import Result
from penstock.loadgen.runner import LoadProgress, run

__all__ = ["Histogram", "Plan", "LoadProgress", "Result", "from_file", "parse_slo", "run", "synthetic"]
