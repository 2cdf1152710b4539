"""The operators' routes: processes and their jobs, the dead-letter list, the doctor's findings, cancelling.

With API keys on, only keys with `admin` get in; without keys only the programs of the same machine. Never a prompt.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from penstock import errors
from penstock.api.admin_answers import (
    PATH,
    CallerCancelled,
    CancelOutcome,
    DeadEntry,
    DeadList,
    DoctorReport,
    Dropped,
    GatewayRow,
    PoolOverview,
    Redriven,
    RunningRow,
    WorkerRow,
)
from penstock.api.callers import authenticate
from penstock.api.cancelling import cancel_all
from penstock.api.requests import KEPT
from penstock.errors import Forbidden, RequestNotFound
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.body_bytes import check_bodiless
from penstock.http.edge import call_of
from penstock.http.json_response import json_response
from penstock.http.openapi import Failures, Kind, add_route, answer_of
from penstock.job import JOB_ID
from penstock.transports.base import DeadJob, Finding, Holding, JobSummary, Overview, engines_finding, worst_first

MAX_SHOWN = 200
_OUTCOMES = {
    "ended": "cancelled",
    "marked": "being cancelled",
    "done": "it had ended already",
    "owned": "not cancelled: another gateway owns this request",
}


class AdminAPI:
    """The operators' routes over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def router(self) -> APIRouter:
        router = APIRouter(prefix=PATH, tags=["admin"])
        always = (errors.Unauthorized, errors.Forbidden, errors.RateLimited, errors.StoreUnavailable)
        of_one = (*always, errors.RequestNotFound)
        full = (errors.Overloaded, errors.QueueFull, errors.StorageQuota, errors.DeadlineUnreachable)
        redriven = (*of_one, *full, errors.Draining, errors.UnsupportedMediaType)

        def add(method: str, path: str, route: Any, name: str, kind: Kind, failures: Failures) -> None:
            add_route(router, method, path, route, f"admin_{name}", answer_of(kind), failures)

        add("GET", "/overview", self.overview, "overview", PoolOverview, always)
        add("GET", "/doctor", self.doctor, "doctor", DoctorReport, always)
        add("GET", "/dead", self.dead, "dead_list", DeadList, always)
        add("GET", "/dead/{request_id}", self.show_dead, "dead_retrieve", DeadEntry, of_one)
        add("POST", "/dead/{request_id}/redrive", self.redrive, "dead_redrive", Redriven, redriven)
        add("DELETE", "/dead/{request_id}", self.drop_dead, "dead_drop", Dropped, of_one)
        add("DELETE", "/requests/{request_id}", self.cancel, "requests_cancel", CancelOutcome, of_one)
        add("DELETE", "/callers/{caller}/requests", self.cancel_all, "callers_cancel", CallerCancelled, always)
        return router

    async def overview(self, request: Request) -> Response:
        """Gateways, workers, the queue, and up to 200 requests that workers hold."""
        await self._admit(request)
        operators = self.gateway.operators
        seen = await operators.overview()
        held = ((holding.worker, job_id) for holding in seen.workers for job_id in holding.held)
        shown = list(islice(held, MAX_SHOWN))
        summaries = await operators.read_summary([job_id for _, job_id in shown])
        return json_response(
            PoolOverview(
                queue_depth=seen.depth,
                drain_rate_per_s=round(self.gateway.pool.drain_rate.per_s, 2),
                num_taken=seen.num_taken,
                num_held=sum(len(holding.held) for holding in seen.workers),
                num_dead=seen.num_dead,
                oldest_waiting_s=await _age_s(self.gateway, seen),
                gateways=[GatewayRow(id=gid, lease_s=round(left, 2)) for gid, left in seen.gateways.items()],
                workers=[_worker_row(holding) for holding in seen.workers],
                running=[_running_row(worker, job) for (worker, _), job in zip(shown, summaries, strict=True) if job],
            )
        )

    async def doctor(self, request: Request) -> Response:
        """Every finding, the worst first; `level` of the whole is that of the worst."""
        await self._admit(request)
        return json_response(await examine(self.gateway))

    async def dead(self, request: Request) -> Response:
        """The dead-letter list, newest first."""
        await self._admit(request)
        return json_response(DeadList(data=await self.gateway.operators.dead()))

    async def show_dead(self, request: Request, request_id: str) -> Response:
        """One dead-letter entry, without its prompt."""
        await self._admit(request)
        job = await self._find_dead(request_id)
        (seen,) = await self.gateway.operators.read_summary([request_id])
        entry = DeadEntry(
            **msgspec.structs.asdict(job),
            attempts=None if seen is None else seen.num_claims,
            created_at=None if seen is None else seen.created_at,
            can_redrive=seen is not None,
        )
        return json_response(entry)

    async def redrive(self, request: Request, request_id: str) -> Response:
        """Run it once more, under a new id, in the background; it leaves the list."""
        call = call_of(request)
        caller = await self._admit(request)
        check_bodiless(request)
        await self._find_dead(request_id)
        record = await self.gateway.store.read(request_id)
        if record is None:
            raise RequestNotFound("The store no longer has this request; it cannot be run again.", param="request_id")
        settings = self.gateway.settings
        job = msgspec.structs.replace(
            record.job, id=call.id, on_disconnect="continue", retention_s=settings.background_retention_s
        )
        permit = await self.gateway.admission.admit(caller, needs_worker=False)
        try:
            reader = await self.gateway.submit(job, f"{PATH}/dead")
            self.gateway.relay.leave(reader, is_delivered=False)
        finally:
            permit.release()
        await self.gateway.operators.remove_dead(request_id)
        return json_response(Redriven(request_id=job.id, redriven=request_id))

    async def drop_dead(self, request: Request, request_id: str) -> Response:
        """Take it off the list."""
        await self._admit(request)
        if not await self.gateway.operators.remove_dead(request_id):
            raise RequestNotFound("It is not in the dead-letter list.", param="request_id")
        return json_response(Dropped(dropped=request_id))

    async def cancel(self, request: Request, request_id: str) -> Response:
        """Cancel a request of any caller."""
        await self._admit(request)
        is_id = JOB_ID.fullmatch(request_id)
        outcome = await self.gateway.relay.cancel(request_id, "operator") if is_id else "gone"
        if outcome == "gone":
            raise RequestNotFound(f"Request not found; it may have expired ({KEPT}).", param="request_id")
        return json_response(CancelOutcome(request_id=request_id, outcome=_OUTCOMES[outcome]))

    async def cancel_all(self, request: Request, caller: Annotated[str, Path(max_length=64)]) -> Response:
        """Cancel everything that a caller, an API key by its id, has waiting or running."""
        await self._admit(request)
        done = await cancel_all(self.gateway.store, self.gateway.operators, caller)
        keys = self.gateway.keys
        if keys is not None:
            keys.refresh()
        is_live = keys is not None and keys.is_live(caller)
        return json_response(
            CallerCancelled(caller=caller, cancelled=done.ended, being_cancelled=done.marked, is_live=is_live)
        )

    async def _admit(self, request: Request) -> Caller:
        caller = await authenticate(self.gateway, request, call_of(request))
        door = self.gateway.door
        if caller.key is None and door is not None and not door.is_loopback:
            raise Forbidden(
                "Without API keys the operators' routes answer on a loopback address only "
                "(PENSTOCK_API_KEYS_FILE, PENSTOCK_HOST)."
            )
        if caller.key is not None and not caller.key.admin:
            raise Forbidden("This needs an administrator's key (penstock keys create --admin).")
        return caller

    async def _find_dead(self, request_id: str) -> DeadJob:
        for job in await self.gateway.operators.dead():
            if job.id == request_id:
                return job
        raise RequestNotFound("It is not in the dead-letter list.", param="request_id")


async def examine(gateway: Gateway) -> DoctorReport:
    """The findings of the store's doctor, and those of the gateway."""
    findings = await gateway.operators.inspect()
    reasons = gateway.why_not_ready()
    findings.append(
        Finding(
            name="this gateway",
            level="error" if reasons else "ok",
            value="; ".join(reasons) or "ready",
            advice="Until that is fixed its /readyz answers 503, so that load balancers leave it out."
            if reasons
            else "",
        )
    )
    findings.append(_examine_keys(gateway))
    if all(finding.name != "workers" for finding in findings):  # a store of one process leaves that to us
        pool = gateway.pool.seen
        age_s = await _age_s(gateway, await gateway.operators.overview())
        findings += [
            Finding(
                name="workers",
                level="ok" if pool.workers else "warning",
                value=f"{len(pool.workers)} alive, serving {', '.join(sorted(pool.models))}"
                if pool.workers
                else "none alive",
            ),
            Finding(name="oldest waiting", level="ok", value="none" if age_s is None else f"{age_s:.1f} s"),
        ]
        if engines := engines_finding(pool.workers):
            findings.append(engines)
    findings = worst_first(findings)
    return DoctorReport(level=findings[0].level, findings=findings)


def _examine_keys(gateway: Gateway) -> Finding:
    keys, name = gateway.keys, "API keys"
    if keys is None:
        return Finding(name=name, level="ok", value="off: everyone who can reach this gateway may use it")
    if keys.trouble:
        value = f"the keys read {keys.stale_s:.0f} s ago are in force, revoked ones too: {keys.trouble}"
        return Finding(name=name, level="error", value=value, advice="Make the file readable for this gateway's user.")
    if keys.exposure:
        return Finding(name=name, level="warning", value=keys.exposure)
    return Finding(name=name, level="ok", value=f"{len(keys)} in force")


async def _age_s(gateway: Gateway, seen: Overview) -> float | None:
    """How long the next one in the queue waits already."""
    (oldest,) = await gateway.operators.read_summary([seen.oldest]) if seen.oldest else (None,)
    return None if oldest is None else round(oldest.now - oldest.created_at, 1)


def _worker_row(holding: Holding) -> WorkerRow:
    row = WorkerRow(id=holding.worker, lease_s=round(holding.lease_s, 2), held=len(holding.held))
    info = holding.info
    if info is None:
        return row
    return msgspec.structs.replace(
        row,
        slots=info.num_slots,
        free=info.num_free,
        host=info.host,
        pid=info.pid,
        models=sorted(info.models),
        engines=info.engines,
    )


def _running_row(worker: str, job: JobSummary) -> RunningRow:
    return RunningRow(
        id=job.id,
        model=job.model,
        caller=job.caller,
        state=job.state,
        worker=worker,
        attempts=job.num_claims,
        tokens=job.num_tokens,
        age_s=round(job.now - job.created_at, 1),
    )
