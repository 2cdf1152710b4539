"""A worker: claim, gather, generate, emit, finish.

`shift.py` is the loop, `runs.py` runs batches in their backends, `outbox.py` writes, `lease.py` stays alive,
`worker.py` goes from one lease to the next, `process.py` is `penstock worker`, `faults.py` the tests' crash points.
"""

from penstock.worker.process import build_worker, run_worker
from penstock.worker.worker import Worker

__all__ = ["Worker", "build_worker", "run_worker"]
