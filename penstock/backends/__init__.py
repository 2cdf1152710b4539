"""Engines under one contract: `base` is the contract, `loading` finds them by name, `options` reads their options."""

from penstock.backends.base import Backend
from penstock.backends.loading import build_backend, find_backend

__all__ = ["Backend", "build_backend", "find_backend"]
