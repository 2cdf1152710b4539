"""Which callers may not use a replica, because it answered them with `Retry-After`. Pure: time is monotonic seconds.

Such an answer may apply to all callers, or be the limit of one: an upstream counts by `user`, or by the length of the
request. So it binds the caller that got it, and all others only once a second caller has got one too while no request
was answered in between.
"""

from __future__ import annotations

MAX_CALLERS = 1024


class Rests:
    def __init__(self) -> None:
        self._own: dict[str, float] = {}  # caller: the time until which it is bound
        self._unanswered: dict[str, float] = {}  # the same, of those refused since the last answer to any caller
        self._all_until = 0.0

    def refused(self, caller: str, now: float, rest_s: float) -> None:
        """The replica has sent `caller` a `Retry-After` of `rest_s`."""
        until = max(now + rest_s, self._own.get(caller, 0.0))
        for bound in (self._own, self._unanswered):
            bound[caller] = until
            if len(bound) > MAX_CALLERS:
                del bound[min(bound, key=bound.__getitem__)]
        if len(self._unanswered) > 1:
            self._all_until = sorted(self._unanswered.values())[-2]  # until one of them alone is still bound

    def answered(self, caller: str) -> None:
        """The replica works for `caller`, so each earlier `Retry-After` binds only the caller that got it."""
        if self._own:
            self._own.pop(caller, None)
            self._unanswered.clear()
            self._all_until = 0.0

    def until(self, caller: str) -> float:
        """When `caller` may ask again; in the past if it may now."""
        return max(self._own.get(caller, 0.0), self._all_until) if self._own else 0.0
