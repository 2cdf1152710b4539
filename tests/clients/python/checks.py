"""Runs the checks of a script, and prints an object: for each its error, or null. Needs nothing but Python."""

from __future__ import annotations

import asyncio
import inspect
import json
import traceback
from collections.abc import Callable
from typing import Any


def run_and_print(*checks: Callable[[], Any]) -> None:
    print(json.dumps({check.__name__: _outcome(check) for check in checks}))  # noqa: T201


def _outcome(check: Callable[[], Any]) -> str | None:
    try:
        done = check()
        if inspect.iscoroutine(done):
            asyncio.run(done)
    except Exception:
        return traceback.format_exc()
    return None
