"""A worker: claim, gather, generate, emit, finish.

`shift.py` is the loop, `batcher.py` decides what runs together, `batches.py` runs it in a backend, `outbox.py` writes,
`lease.py` stays alive, `worker.py` goes from one lease to the next, `crash_points.py` is for tests. The process around
it is `processes/worker.py`.
"""

from penstock.worker.worker import Worker

__all__ = ["Worker"]
