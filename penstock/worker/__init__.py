"""A worker: claim, gather, generate, emit, finish.

`worker.py` goes from one lease to the next; `tenure.py` is the loop of the time under one lease. `batcher.py` decides
what runs together, `batches.py` runs it in a backend, `outbox.py` writes, `lease.py` renews the lease,
`crash_points.py` is for tests. The process around it is `processes/worker.py`.
"""

from penstock.worker.worker import Worker

__all__ = ["Worker"]
