"""The measured costs of Penstock's processes: the types of `costs.json`, and reading it.

`python -m bench.scale` writes the file; `capacity` computes with it. A cost that was not measured is None, never a
guess. Knows no arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from penstock.errors import ConfigError

PACKAGED = Path(__file__).with_name("costs.json")

Cost = Annotated[float, msgspec.Meta(ge=0)] | None


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The source of the figures. `streams`: open at once while the cost of a token was measured, in each cell."""

    date: str
    command: str
    cpu: str
    cores: int
    server: str
    penstock: str
    streams: list[int]


class ProcessCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process of a kind. CPU in microseconds; `base_mb` and `kb_per_stream` are resident memory."""

    us_per_token: Cost = None
    us_per_request: Cost = None
    base_mb: Cost = None
    kb_per_stream: Cost = None
    redis_connections: Cost = None


class RedisCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Redis server. Memory and network are what Redis reports: memory in use, bytes read and written."""

    us_per_token: Cost = None
    us_per_request: Cost = None
    base_mb: Cost = None
    bytes_per_token: Cost = None
    bytes_per_request: Cost = None
    in_bytes_per_token: Cost = None
    out_bytes_per_token: Cost = None


class ClientCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bytes of a stream's body that go to a client, without the headers of lower layers."""

    bytes_per_token: Cost = None


class Costs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    about: Origin
    gateway: ProcessCosts
    worker: ProcessCosts
    redis: RedisCosts
    client: ClientCosts


def read_costs(path: Path = PACKAGED) -> Costs:
    """Raises `ConfigError` for an invalid file, with what is wrong in it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Costs)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a costs file: {error}") from error
