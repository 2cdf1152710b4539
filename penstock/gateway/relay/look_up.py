"""Find a request that a client asks for: in the store, or in this gateway if the store has lost it."""

from __future__ import annotations

import logging
import time

from penstock.gateway.relay.keeper import Keeper
from penstock.gateway.relay.patience import Patience
from penstock.gateway.relay.records import record_of, stream_of
from penstock.gateway.relay.repair import Repairer
from penstock.gateway.relay.table import StreamTable
from penstock.transports.base import LATE_SLACK_S, GatewayStore, Record

logger = logging.getLogger(__name__)


class LookUp:
    """Reads the requests of one gateway, and of others. Repairs what a look shows to be wrong."""

    def __init__(
        self,
        gateway_id: str,
        store: GatewayStore,
        table: StreamTable,
        keeper: Keeper,
        repairer: Repairer,
        patience: Patience,
    ) -> None:
        self._gateway_id = gateway_id
        self._store = store
        self._table = table
        self._keeper = keeper
        self._repairer = repairer
        self._patience = patience

    async def look_up(self, job_id: str) -> Record | None:
        """The record of a request: the store's, or this gateway's if the store has lost the request or its end.

        None if the request does not exist. Raises `StoreUnavailable` where that is uncertain: the store has just lost
        data, and another gateway may be about to restore the request.
        """
        streams = self._table.streams
        record = await self._store.read(job_id)
        if record is not None and record.state == "done":
            if job_id in streams:
                self._repairer.learn(streams[job_id], record)
            elif record.job.retention_s is not None and self._keeper.get(job_id) is None:
                self._repairer.catch_up(stream_of(record), record)  # which remembers it
            return record
        known = await self.known(job_id)
        if record is None and known is not None and known.state == "done" and await self._keeper.is_deleted(job_id):
            return None
        if known is not None and (record is None or known.state == "done"):
            stream = streams.get(job_id)
            if stream is not None and stream.end is None:
                self._repairer.request_log(stream, "lookup")
            else:
                self._repairer.spawn(self._keeper.check_one(job_id))
            return known
        if record is None:
            await self._keeper.make_sure()
        elif record.now >= record.deadline_at + LATE_SLACK_S:
            await self._store.cancel(job_id, "deadline")  # its gateway and worker have not ended it
            return await self._store.read(job_id, job=record.job) or record
        elif job_id not in streams and self._patience.is_forsaken(record):
            is_pushed = await self._store.requeue_if_missing(job_id)
            if is_pushed:
                logger.warning("pushed again: it was in no list, and its gateway is gone", extra={"request_id": job_id})
        return record

    async def known(self, job_id: str) -> Record | None:
        """The record of a request that this gateway holds, or that has ended at it."""
        stream = await self._table.find(job_id) or self._keeper.get(job_id)
        is_own_word = stream is not None and stream.end is not None and not stream.is_ended  # not its real end
        if stream is None or is_own_word:
            return None
        return record_of(stream, self._gateway_id, time.monotonic(), time.time())
