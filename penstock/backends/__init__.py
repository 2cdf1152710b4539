"""Engines under one contract: `base.py` is the promise, `loading.py` finds them by name."""

from penstock.backends.base import Backend
from penstock.backends.loading import build_backend, find_backend

__all__ = ["Backend", "build_backend", "find_backend"]
