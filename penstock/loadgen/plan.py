"""The plan of a run, in the form that the processes of load receive: one frozen, serialisable `Plan`."""

from __future__ import annotations

import math
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from penstock.errors import ConfigError

API = Literal["generate", "chat", "completions"]

PATHS: dict[API, str] = {
    "generate": "/v1/generate",
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
}
SLO_NAMES = ("ttft", "itl", "gap", "e2e")


class Prepared(msgspec.Struct, frozen=True, array_like=True):
    """One request: its JSON body as it is sent, and the `max_tokens` in it."""

    body: str
    max_tokens: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run. Durations in seconds; `slo` in seconds by name.

    Closed loop with `rate` 0: `concurrency` connections, each asks again when it has its answer. Open loop otherwise:
    Poisson arrivals of `rate` a second over at most `concurrency` connections. `requests` 0: until `duration_s` is
    over. A closed loop's connections begin spread over `ramp_s`; without `preconnect` they are opened with their first
    requests, all at the same moment: a fleet of clients that arrives at once.
    """

    url: str
    api: API = "generate"
    api_key: str = ""
    prepared: list[Prepared]
    is_stream: bool = True
    concurrency: int = 32
    rate: float = 0.0
    duration_s: float = 10.0
    requests: int = 0
    warmup_s: float = 0.0
    ramp_s: float = 0.0
    preconnect: bool = True
    timeout_s: float = 60.0
    slo: dict[str, float] = {}
    seed: int = 0
    processes: int = 1

    def share(self, index: int) -> Plan:
        """The part of process `index`; the parts of all processes add up to this plan."""
        num = self.processes

        def part(whole: int) -> int:
            return whole // num + (index < whole % num)

        return msgspec.structs.replace(
            self,
            concurrency=part(self.concurrency),
            requests=part(self.requests),
            rate=self.rate / num,
            seed=self.seed + index,
            prepared=self.prepared[index % len(self.prepared) :] + self.prepared[: index % len(self.prepared)],
            processes=1,
        )


class Target(msgspec.Struct, frozen=True):
    """The address of the server."""

    host: str
    port: int
    is_tls: bool
    path: str


def target_of(url: str, api: API) -> Target:
    """The endpoint under a server's URL, which may end in `/v1`. Raises `ConfigError` for an invalid URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is not an http:// or https:// URL")
    is_tls = parts.scheme == "https"
    base = parts.path.rstrip("/").removesuffix("/v1")
    return Target(parts.hostname, port or (443 if is_tls else 80), is_tls, base + PATHS[api])


def request_bytes(target: Target, plan: Plan, body: str) -> bytes:
    """A whole HTTP/1.1 request."""
    data = body.encode()
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"host: {host}:{target.port}",
        "content-type: application/json",
        f"accept: {'text/event-stream' if plan.is_stream else 'application/json'}",
        f"content-length: {len(data)}",
        *([f"authorization: Bearer {plan.api_key}"] if plan.api_key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


def parse_slo(text: str) -> dict[str, float]:
    """`ttft=200ms,itl=20ms,e2e=3s` as seconds by name; a number without a unit is milliseconds. Raises `ConfigError`.

    `ttft` first token, `itl` mean time between a request's tokens, `gap` its longest pause, `e2e` the whole answer.
    """
    found: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        number, factor = value.strip(), 0.001
        if number.endswith("ms"):
            number = number[:-2]
        elif number.endswith("s"):
            number, factor = number[:-1], 1.0
        try:
            seconds = float(number) * factor
        except ValueError:
            seconds = math.nan
        if not equals or name.strip() not in SLO_NAMES or not 0 < seconds < math.inf:
            raise ConfigError(f"--slo: {item!r}: give {'=…ms, '.join(SLO_NAMES)}=…ms, separated by commas")
        found[name.strip()] = seconds
    return found
