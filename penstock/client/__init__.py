"""The Python client: `Client` and `AsyncClient`, two thin shells around one core that does no I/O.

A stream that loses its connection or its gateway continues at the next URL, after the last token that it has.
"""

from penstock.client.aio import AsyncClient, AsyncHandle, AsyncStream
from penstock.client.options import Options
from penstock.client.sync import Client, Handle, Stream
from penstock.client.types import Answer, ModelInfo, Status, Timings

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncHandle",
    "AsyncStream",
    "Client",
    "Handle",
    "ModelInfo",
    "Options",
    "Status",
    "Stream",
    "Timings",
]
