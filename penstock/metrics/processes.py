"""Several gateway processes on one port: they share memory-mapped files, so that any of them answers for all.

This is prometheus_client's multiprocess mode, and one thing more: a new process takes over a dead one's files.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def prepare_multiprocess(directory: str | Path) -> Path:
    """In the parent, before it starts (or forks) its children: they share their metrics in `directory`.

    Files left there by an earlier run are removed. The parent removes the directory at its end.
    """
    path = Path(directory)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for stale in [*path.glob("*.db"), *path.glob("dead-*")]:
        stale.unlink()
    os.environ[MULTIPROCESS_DIR] = str(path)
    # prometheus_client chooses when it is imported, which in this process has been; a forked child inherits that.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # prometheus_client has no hints here
    return path


def mark_dead(pid: int, directory: str | Path | None = None) -> None:
    """In the parent, when a child has ended: its gauges count no more; its counters stay.

    The next child takes over its files, so there are never more files than there were processes at once.
    """
    path = str(directory) if directory is not None else os.environ[MULTIPROCESS_DIR]
    mark_process_dead(pid, path)  # type: ignore[no-untyped-call]  # prometheus_client has no hints here
    Path(path, f"dead-{pid}").touch()


def adopt(directory: str) -> None:
    """Take over the counters of one dead process, if there is one and this process has none yet."""
    if glob.glob(os.path.join(directory, f"*_{os.getpid()}.db")):
        return
    for marker in sorted(glob.glob(os.path.join(directory, "dead-*"))):
        try:
            os.unlink(marker)
        except FileNotFoundError:
            continue  # another new process was faster
        pid = marker.rpartition("-")[2]
        for kind in ("counter", "histogram"):
            source = os.path.join(directory, f"{kind}_{pid}.db")
            if os.path.exists(source):
                os.rename(source, os.path.join(directory, f"{kind}_{os.getpid()}.db"))
        return


def merged(directory: str, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
    """The exposition of all processes together."""
    for _ in range(5):
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]  # prometheus_client has no hints here
        try:
            return encode(registry)
        except FileNotFoundError:  # a new process has just taken over a dead one's file
            continue
    raise RuntimeError(f"the metrics files in {directory} kept changing")
