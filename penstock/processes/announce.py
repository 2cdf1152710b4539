"""The last steps before a process serves: it freezes the objects of its start-up and prints a few lines.

The lines go to stdout, as stderr is the log's.
"""

from __future__ import annotations

import gc
import re

from penstock import stdio
from penstock.gateway.gateway import Gateway
from penstock.settings import Settings
from penstock.transports import queue_name
from penstock.version import __version__

# A thousand open streams are many objects, and none of them is garbage. With Python's default, a collection after 700
# new objects, walking them costs a tenth of the throughput. The number is not higher, as every stream waits while the
# collector walks that many. A worker keeps the default, as an engine in it may hold much memory in cycles.
GC_THRESHOLD = (10_000, 50, 50)


def announce_gateway(gateway: Gateway, host: str, port: int, serves: str) -> None:
    """`serves`: the names of the models, as text for people."""
    _freeze()
    gc.set_threshold(*GC_THRESHOLD)
    address = _address(host, port)
    here = re.sub(r"^(0\.0\.0\.0|\[::\])", "127.0.0.1", address)
    key = "" if gateway.keys is None else "-H 'authorization: Bearer KEY' "
    stdio.writer(1).put(
        f"Penstock {__version__} listens on http://{address} (API page: /docs, metrics: /metrics)\n"
        f"  models:   {serves}\n"
        f"  store:    {gateway.settings.shown('redis_url') or 'memory'}\n"
        f"  API keys: {_who_may_call(gateway, address)}\n"
        f"  try:      curl -N http://{here}/v1/generate {key}-H 'content-type: application/json' "
        """-d '{"prompt": "Hello", "max_tokens": 32, "stream": true}'\n"""
    )


def announce_worker(settings: Settings, host: str, port: int) -> None:
    """`host` and `port` are those of its metrics."""
    _freeze()
    stdio.writer(1).put(
        f"Penstock {__version__} worker\n"
        f"  models:  {models_of(settings)}\n"
        f"  store:   {settings.shown('redis_url')}, queue {queue_name(settings)}\n"
        f"  metrics: http://{_address(host, port)}/metrics\n"
    )


def models_of(settings: Settings) -> str:
    """The models and their backends; a first user must know that `mock` is not a language model."""
    shown = {"mock": "mock: a simulator, its words mean nothing"}
    return ", ".join(f"{spec.name} ({shown.get(spec.backend, spec.backend)})" for spec in settings.models)


def _freeze() -> None:
    """Freeze the objects of start-up, so that the collector does not walk them again for every request."""
    gc.collect()
    gc.freeze()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _who_may_call(gateway: Gateway, address: str) -> str:
    if gateway.keys is not None:
        return f"ON - {len(gateway.keys)} in {gateway.keys.path}"
    off = "OFF - everyone who can reach {} may read and cancel every request{}"
    is_local = gateway.door is not None and gateway.door.is_loopback
    return off.format(address, "" if is_local else "; the operators' routes are off")
