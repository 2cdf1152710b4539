"""The processes of Penstock: how they start, run and end.

`gateway.py`, `worker.py` and `serve.py` (both in one) are the processes; `listen.py` binds their sockets, `announce.py`
prints their first lines, `signals.py` handles the signals that stop them. `supervisor.py` is a parent that restarts
them, `child.py` their side of it, `worker_parent.py` what it does for a worker, and `stand_in.py` for gateways.
"""
