"""Cancelling: the store is asked until it answers, and again when a worker goes on all the same.

A frame of a request that is unknown here does not show whether its client left: the request may have ended, and the
store may have been rolled back. Only what this gateway has cancelled is cancelled again (rule 18). Knows no streams.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict

from penstock.errors import StoreUnavailable
from penstock.transports.base import CancelOutcome, EndReason, GatewayStore

logger = logging.getLogger(__name__)

MAX_UNWANTED = 10_000
HEARD_WITHIN_S = 5.0
_TRIES, _AGAIN_S = 20, 0.5


class Canceller:
    """Remembers what this gateway has cancelled, the newest `MAX_UNWANTED`: when it last asked for it, and why."""

    def __init__(self, gateway_id: str, store: GatewayStore) -> None:
        self._gateway_id = gateway_id
        self._store = store
        self._said: OrderedDict[str, tuple[float, EndReason]] = OrderedDict()

    async def cancel(self, job_id: str, reason: EndReason, *, until_ended: bool = False) -> CancelOutcome | None:
        """Ask for the end of a request, unless another gateway answers for it. None: the store does not answer.

        `until_ended`: where a worker has only been asked to end it, ask again.
        """
        self._said[job_id] = (time.monotonic(), reason)
        self._said.move_to_end(job_id)
        if len(self._said) > MAX_UNWANTED:
            self._said.popitem(last=False)
        for _ in range(_TRIES):
            try:
                outcome = await self._store.cancel(job_id, reason, self._gateway_id)
            except StoreUnavailable:
                await asyncio.sleep(_AGAIN_S)
                continue
            if outcome in ("owned", "running"):
                self._said.pop(job_id, None)
            if outcome != "marked" or not until_ended:
                return outcome
            await asyncio.sleep(_AGAIN_S)
        logger.warning("could not cancel; tried again when its worker sends a frame", extra={"request_id": job_id})
        return None

    def why_again(self, job_id: str) -> EndReason | None:
        """The reason to cancel it once more, now that a frame of it has come; None if it is wanted, or may yet stop."""
        said_at, reason = self._said.get(job_id, (0.0, None))
        return reason if time.monotonic() - said_at > HEARD_WITHIN_S else None
