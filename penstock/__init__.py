"""Penstock: LLM serving on a durable queue.

The public surface is `__all__`, and `tests/unit/test_repo.py` guards it. Names load on first use, so that
`import penstock` costs next to nothing.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.backends.base import Backend as Backend
    from penstock.client import Answer as Answer
    from penstock.client import AsyncClient as AsyncClient
    from penstock.client import Client as Client
    from penstock.client import Status as Status
    from penstock.errors import ConfigError as ConfigError
    from penstock.errors import PenstockError as PenstockError
    from penstock.event import Completion as Completion
    from penstock.event import Done as Done
    from penstock.event import Event as Event
    from penstock.event import Failed as Failed
    from penstock.event import Started as Started
    from penstock.event import Tokens as Tokens
    from penstock.event import Usage as Usage
    from penstock.event import fold as fold
    from penstock.fleet import Capabilities as Capabilities
    from penstock.job import Batch as Batch
    from penstock.job import Claim as Claim
    from penstock.job import Job as Job
    from penstock.job import Message as Message
    from penstock.job import Sampling as Sampling
    from penstock.rich_token import Logprob as Logprob
    from penstock.rich_token import RichToken as RichToken
    from penstock.rich_token import Token as Token
    from penstock.rich_token import ToolCall as ToolCall
    from penstock.settings import ModelSpec as ModelSpec
    from penstock.settings import Settings as Settings
    from penstock.settings import load_settings as load_settings
    from penstock.transports.base import Transport as Transport

    Piece = RichToken  # see `_RENAMED`

from penstock.version import __version__

_HOME = {
    "Answer": "penstock.client",
    "AsyncClient": "penstock.client",
    "Backend": "penstock.backends.base",
    "Batch": "penstock.job",
    "Capabilities": "penstock.fleet",
    "Claim": "penstock.job",
    "Client": "penstock.client",
    "Completion": "penstock.event",
    "ConfigError": "penstock.errors",
    "Done": "penstock.event",
    "Event": "penstock.event",
    "Failed": "penstock.event",
    "Job": "penstock.job",
    "Logprob": "penstock.rich_token",
    "Message": "penstock.job",
    "ModelSpec": "penstock.settings",
    "PenstockError": "penstock.errors",
    "RichToken": "penstock.rich_token",
    "Sampling": "penstock.job",
    "Settings": "penstock.settings",
    "Started": "penstock.event",
    "Status": "penstock.client",
    "Token": "penstock.rich_token",
    "Tokens": "penstock.event",
    "ToolCall": "penstock.rich_token",
    "Transport": "penstock.transports.base",
    "Usage": "penstock.event",
    "fold": "penstock.event",
    "load_settings": "penstock.settings",
}

# Old names, kept for one release: each still works, with a DeprecationWarning.
_RENAMED = {"Piece": "RichToken"}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        new = _RENAMED[name]
        message = f"penstock.{name} is now penstock.{new}; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return __getattr__(new)
    if name not in _HOME:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
