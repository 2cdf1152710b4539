"""Every metric, and `Meter`, a fold over a request's events: the only package that knows prometheus_client.

`table.py` lists the metrics, `meter.py` measures one request, `registry.py` is what a process counts with, and
`processes.py` makes several processes answer as one.
"""

from __future__ import annotations

from penstock.metrics.meter import OTHER, Meter
from penstock.metrics.processes import mark_dead, prepare_multiprocess
from penstock.metrics.registry import Metrics
from penstock.metrics.table import TABLE, render_markdown

__all__ = ["Metrics", "Meter", "prepare_multiprocess", "mark_dead", "render_markdown", "TABLE", "OTHER"]
