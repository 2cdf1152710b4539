"""Crash points for the chaos tests: nothing at all unless `PENSTOCK_TEST_CRASH` is set when the worker starts.

    PENSTOCK_TEST_CRASH=POINT[:PASSAGE[:ACTION]]        several, separated by commas

At the PASSAGE-th time (default: the first) that this process passes POINT it does ACTION: `kill` (default, SIGKILL to
itself), `stop` (SIGSTOP: frozen until it receives SIGCONT) or `hang` (its event loop blocks forever). The points:

    after_pop       ids are in the worker's list, not claimed       after_emit     a step is written
    after_claim     claimed, nothing generated                      before_final   as mid_step, where a job ends in it
    mid_step        generated, the step not written                 after_final    as after_emit, where a job ends in it
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

from penstock.errors import ConfigError

VARIABLE = "PENSTOCK_TEST_CRASH"
POINTS = ("after_pop", "after_claim", "mid_step", "after_emit", "before_final", "after_final")
ACTIONS = ("kill", "stop", "hang")

CrashPoints = Callable[[str], None]


def no_crash_points(_point: str) -> None:
    """Does nothing: for every worker that is not under test."""


def crash_points_from(text: str | None = None) -> CrashPoints:
    """The function to call at each point, from `text` (default: the variable). `ConfigError` if it is invalid."""
    text = os.environ.get(VARIABLE, "") if text is None else text
    if not text:
        return no_crash_points
    plan: dict[tuple[str, int], str] = {}
    for item in text.split(","):
        point, _, rest = item.strip().partition(":")
        passage, _, action = rest.partition(":")
        if point not in POINTS or not (passage or "1").isdecimal() or (action or "kill") not in ACTIONS:
            raise ConfigError(f"{VARIABLE}={text!r}: {item!r} is not one of {POINTS} with :PASSAGE:{'|'.join(ACTIONS)}")
        plan[point, int(passage or 1)] = action or "kill"
    passages: Counter[str] = Counter()

    def reach(point: str) -> None:
        passages[point] += 1
        action = plan.get((point, passages[point]))
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        while action == "hang":
            time.sleep(3600)

    return reach
