"""The limiter's arithmetic: GCRA, pure, time is an argument. `lua/charge.lua` is the same in Lua.

The generic cell rate algorithm (ITU-T I.371): one number a key, the theoretical arrival time (`tat`). A request is
allowed if it does not come more than the burst's worth too early, and each allowed one moves `tat` one interval on.
"""

from __future__ import annotations

from penstock.transports.base import RateLimit, Verdict


def gcra(tat: float, now: float, limit: RateLimit, cost: int = 1) -> tuple[Verdict, float]:
    """Judge a request that counts as `cost` at `now`: the verdict, and the new `tat`, unchanged if refused. Seconds.

    A negative `cost` gives back what was counted, and is never refused. It leaves no more than a whole burst.
    """
    interval = 60.0 / limit.rpm
    tolerance = interval * limit.burst
    tat = max(tat, now)
    new_tat = tat + interval * cost
    early = new_tat - tolerance - now
    if early > 1e-9:
        return Verdict(False, 0, tat - now, early), tat
    new_tat = max(new_tat, now)
    remaining = int((tolerance - (new_tat - now)) / interval + 1e-6)
    return Verdict(True, remaining, new_tat - now), new_tat
