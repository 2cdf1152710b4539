"""Authenticates the caller of an HTTP request, and charges its rate limit."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from penstock.errors import Forbidden
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.connection import header
from penstock.http.edge import Call, call_of
from penstock.settings.about import env_name


async def authenticate(gateway: Gateway, request: Request, call: Call) -> Caller:
    """Identify the caller and charge the rate limit. Raises `Unauthorized`, `RateLimited`."""
    caller = identify(gateway, request)
    call.caller = caller.id
    await charge(gateway, call, caller, 1)
    return caller


async def charge(gateway: Gateway, call: Call, caller: Caller, cost: int) -> None:
    """Count the call as `cost` requests in all, and give them back if there turns out to be no room for it.

    Raises `RateLimited`, `InvalidRequest`.
    """
    call.headers |= await gateway.admission.charge(caller, cost, charged=call.num_charged)
    call.num_charged = max(cost, call.num_charged)
    call.refund = partial(gateway.admission.refund, caller)


def identify(gateway: Gateway, request: Request) -> Caller:
    """The caller, by key and address. Raises `Unauthorized`."""
    token = header(request.scope, b"x-api-key")
    if token is None:
        token = header(request.scope, b"api-key")  # Azure's
    if token is None:
        scheme, _, value = (header(request.scope, b"authorization") or "").partition(" ")
        token = value if scheme.lower() == "bearer" else None
    token = token and token.strip()
    peer = str((request.scope.get("client") or ("",))[0])
    # A proxy may add a line of its own instead of its part to the client's line: the rightmost counts, so take all.
    hops = [value.decode("latin-1") for name, value in request.scope["headers"] if name == b"x-forwarded-for"]
    return gateway.admission.identify(token, peer, ", ".join(hops))


def guard_metrics(gateway: Gateway, request: Request) -> None:
    """The metrics name every model and what all callers do. Raises `Unauthorized`, `Forbidden`."""
    if gateway.keys is None or gateway.settings.metrics_public:
        return
    caller = identify(gateway, request)
    call_of(request).caller = caller.id
    if caller.key is not None and not (caller.key.admin or caller.key.metrics):
        raise Forbidden(
            "This needs a key for metrics (penstock keys create --metrics) or an administrator's, as long as "
            f"{env_name('metrics_public')} is not set."
        )
