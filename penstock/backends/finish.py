"""How an answer ends at a backend: `Finish`, or an exception and the error that a client reads for it.

Part of the contract: import both from `base`. They have a file of their own because `base` imports `streams`, which
needs them.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass

from penstock.errors import BackendError, PenstockError
from penstock.event import FinishReason, Usage
from penstock.job import Claim

logger = logging.getLogger("penstock.backends")


@dataclass(slots=True, frozen=True)
class Finish:
    """The last item of a stream whose engine ends answers by itself (`Backend.handles_stop`).

    `usage`: as the engine counted; without it the tokens are counted here.
    """

    reason: FinishReason
    usage: Usage | None = None


def failure(error: Exception, claim: Claim) -> PenstockError:
    """The error that a client gets for an exception in a backend; the log names its source, never the prompt."""
    if isinstance(error, PenstockError):
        return error
    where = traceback.extract_tb(error.__traceback__)[-1:]
    logger.error(
        "backend failed: %s at %s",
        type(error).__name__,
        ", ".join(f"{frame.filename}:{frame.lineno}" for frame in where) or "an unknown place",
        extra={"request_id": claim.job.id, "model": claim.job.model, "error": type(error).__name__},
    )
    # The message of an exception may contain the prompt: logged at level debug only.
    logger.debug("backend failed", exc_info=error, extra={"request_id": claim.job.id})
    return BackendError(f"The model's backend failed ({type(error).__name__}).")
