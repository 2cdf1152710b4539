"""Every setting, once: type, range, default, meaning, and the commands that it is for.

Everything else follows from here: environment variables and flags by name, `--help`, `docs/configuration.md`,
`.env.example`. Knows nothing of where values come from; `Settings(port=0)` reads no environment.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationInfo, field_validator

from penstock.settings.about import EVERY, About, CommandName, env_name, text_of
from penstock.settings.models import GRAMMAR, ModelSpec, masked, read_models

Network = IPv4Network | IPv6Network

EDGE: tuple[CommandName, ...] = ("serve", "gateway")
ENGINE: tuple[CommandName, ...] = ("serve", "worker")

ReasoningField = Literal["reasoning_content", "reasoning", "both"]

DAY_S = 86_400.0


_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def _default_max_tokens(data: dict[str, Any]) -> int:
    return min(32_768, int(data["max_tokens_limit"]))


def _default_timeout_s(data: dict[str, Any]) -> float:
    return min(600.0, float(data["max_timeout_s"]))


def _max_image_body_bytes(data: dict[str, Any]) -> int:
    return max(2**24, int(data["max_body_bytes"]))


def _metrics_host(data: dict[str, Any]) -> str:
    return str(data["host"])


def _max_queued_per_caller(data: dict[str, Any]) -> int:
    return max(1, int(data["max_queue_depth"]) // 2)


def _rate_limit_burst(data: dict[str, Any]) -> int:
    return max(1, int(data["rate_limit_rpm"]) // 6)


class Settings(BaseModel):
    """Effective settings, immutable. Durations are seconds (`_s`) unless the name ends in `_ms`.

    Constructing one directly takes what is given and the defaults; `load_settings` reads environment and files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=False)

    # ── where it listens ──
    host: Annotated[
        str,
        Field(min_length=1),
        About("Address to listen on. 0.0.0.0 or :: means every address.", allowed="an address or a host name"),
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535), About("Port of the HTTP API. 0: a free port, printed.", EDGE)] = 8000
    processes: Annotated[
        int,
        Field(ge=1, le=256),
        About("Gateway processes that share the port. More than one needs Redis.", ("gateway",)),
    ] = 1
    metrics_host: Annotated[
        str,
        Field(min_length=1),
        About(
            "Address of a worker's /metrics and health.",
            ("worker",),
            allowed="an address or a host name",
            default="the host",
        ),
    ] = Field(default_factory=_metrics_host)
    metrics_port: Annotated[
        int,
        Field(ge=0, le=65535),
        About("Port of a worker's /metrics and health. 0, or unset and in use: a free port, printed.", ("worker",)),
    ] = 9100

    # ── the store and the models ──
    redis_url: Annotated[
        SecretStr | None,
        About(
            "Redis or Valkey. Unset: `serve` keeps everything in memory; `gateway` and `worker` need it.",
            details="One server: `redis://user:password@host:6379/db`, or `unix:///path`. "
            "Sentinels and their service: `redis+sentinel://user:password@sentinel:26379,sentinel2:26379/service/db`"
            ", with `?sentinel_username=…&sentinel_password=…` if the sentinels need them. "
            "Some nodes of a cluster: `redis+cluster://user:password@node:6379,node2:6379`. "
            "With TLS the URL begins with `rediss`; its options, after `?`, are `ssl_ca_certs`, `ssl_ca_path`, "
            "`ssl_cert_reqs=none` to accept any certificate, `ssl_check_hostname=false`, `ssl_certfile`, "
            "`ssl_keyfile`, `ssl_password`.",
            allowed="redis[s]://, redis[s]+sentinel://, redis[s]+cluster:// or unix:// URL",
        ),
    ] = None
    pool: Annotated[
        str,
        Field(pattern=r"^[a-z0-9-]{0,63}$"),
        About(
            "Pool of workers, each with a queue of its own (`inference:queue:<pool>`). All workers of a pool serve the "
            "same models. Empty: the one queue `inference:queue`.",
            allowed="a-z, 0-9 and - (at most 63)",
        ),
    ] = ""
    models: Annotated[
        tuple[ModelSpec, ...],
        About("Models to serve. The flag is `--model` and may be repeated.", ENGINE, allowed=GRAMMAR),
    ] = (ModelSpec("mock", "mock"),)

    # ── callers ──
    api_keys_file: Annotated[
        Path | None,
        About(
            "File of API keys (`penstock keys`); read again when it changes. Unset: callers need no key. Set and empty "
            "is an error.",
            EDGE,
            allowed="path of a .toml or .json file",
            guards=True,
        ),
    ] = None
    metrics_public: Annotated[
        bool,
        About(
            "Whether a gateway with API keys answers `/metrics` without a key. Otherwise `/metrics` needs an "
            "administrator's key, or a key for metrics (`penstock keys create --metrics`).",
            EDGE,
            allowed="yes or no",
        ),
    ] = False
    rate_limit_rpm: Annotated[
        int,
        Field(ge=0, le=10**9),
        About(
            "Sustained requests per caller, by API key or else by address. Each answer (`n`) and each prompt counts as "
            "a request, and so do 16 inputs to embed. 0: no limit.",
            EDGE,
            "requests/min",
            guards=True,
        ),
    ] = 0
    rate_limit_burst: Annotated[
        int,
        Field(ge=1, le=10**9),
        About(
            "Requests that a caller may send at once. A single call that counts as more gets 400.",
            EDGE,
            "requests",
            default="a sixth of the rate (ten seconds), at least 1",
        ),
    ] = Field(default_factory=_rate_limit_burst)
    insecure: Annotated[
        bool,
        About(
            "Listen without API keys on an address that other machines can reach. Everyone who reaches it may then "
            "read and cancel every request. Without keys and without this such a gateway does not start.",
            EDGE,
            allowed="yes or no",
        ),
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        About(
            "Names that a request's Host header may have; other names get 421. A gateway on a loopback address always "
            "accepts localhost, 127.0.0.1 and [::1]; if a proxy on the same machine passes on its public name, add "
            "that name. A gateway on another address always accepts an address in place of a name, and every name if "
            "this is empty.",
            EDGE,
            allowed="host names or addresses without a port, separated by commas, or *",
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[Network, ...],
        About(
            "Proxies from which the gateway accepts X-Forwarded-For. Empty: none.",
            EDGE,
            allowed="addresses or networks, separated by commas",
        ),
    ] = ()

    cors_origins: Annotated[
        tuple[str, ...],
        About(
            "Origins of web pages that may call this gateway from a browser. Empty: none. `*`: every web page, in the "
            "browser of anyone who can reach the gateway.",
            EDGE,
            allowed="origins (https://app.example.org, app://obsidian.md, tauri://*), separated by commas, or *",
        ),
    ] = ()

    # ── the queue and the batches ──
    max_queue_depth: Annotated[
        int,
        Field(ge=1, le=10_000_000),
        About("Requests that may wait, over all gateways. Beyond it: 429 `queue_full`.", EDGE, "requests"),
    ] = 1000
    max_queued_per_caller: Annotated[
        int,
        Field(ge=0, le=10_000_000),
        About(
            "Requests of one API key that may wait, over all gateways. Beyond it: 429 `queue_full` for that key alone. "
            "Callers without a key have the whole queue. 0: no limit of its own.",
            EDGE,
            "requests",
            default="half of the depth of the queue",
        ),
    ] = Field(default_factory=_max_queued_per_caller)
    batch_window_ms: Annotated[
        float,
        Field(ge=10, le=30),
        About(
            "How long the first request of a batch waits for others. Backends that batch continuously have no window.",
            ENGINE,
            "ms",
        ),
    ] = 10.0
    batch_window_early: Annotated[
        bool,
        About(
            "Adapt the batch window. While most batch slots are free, a batch begins after a quarter of the window "
            "without an arrival. The last two free batch slots wait until no request has arrived for a whole window, "
            "at most ten windows. With `no` every window has its whole length.",
            ENGINE,
            allowed="yes or no",
        ),
    ] = True
    max_batch_size: Annotated[int, Field(ge=1, le=65_536), About("Sequences in one batch.", ENGINE, "sequences")] = 64
    max_batches: Annotated[
        int,
        Field(ge=1, le=1024),
        About(
            "Batches that a worker runs at once. It holds no more requests than these have room for.", ENGINE, "batches"
        ),
    ] = 4

    # ── what is stored ──
    max_stored_per_caller: Annotated[
        int,
        Field(ge=0, le=10_000_000),
        About(
            "Requests of one caller that the store holds: waiting, running, and ended ones until they expire. Beyond "
            "it: 429 `storage_quota`. Callers without a key are one caller. 0: no limit.",
            EDGE,
            "requests",
        ),
    ] = 100_000
    max_stored_bytes_per_caller: Annotated[
        int,
        Field(ge=0, le=2**50),
        About(
            "Bytes of one caller's requests and answers that the store holds; until its end a request counts with an "
            "answer of up to 4,096 tokens, and with more while its answer grows. Beyond it: 429 `storage_quota`. 0: no "
            "limit.",
            EDGE,
            "bytes",
        ),
    ] = 2**31
    max_memory_bytes: Annotated[
        int,
        Field(ge=0, le=2**50),
        About(
            "Bytes of requests and answers that `serve` keeps without Redis, counted as for one caller. Beyond it: 503 "
            "`store_unavailable`. 0: no limit.",
            ("serve",),
            "bytes",
        ),
    ] = 2**30

    # ── one request ──
    max_tokens_limit: Annotated[
        int, Field(ge=1, le=10_000_000), About("Highest `max_tokens` that a request may ask for.", EDGE, "tokens")
    ] = 131_072
    default_max_tokens: Annotated[
        int,
        Field(ge=1, le=10_000_000),
        About(
            "Most tokens of an answer to a request that names no `max_tokens`. A model whose own limit is lower goes "
            "by that; an upstream engine is asked for as many as its context holds, and cut at this number.",
            EDGE,
            "tokens",
            default="32768, or the limit if lower",
        ),
    ] = Field(default_factory=_default_max_tokens)
    max_timeout_s: Annotated[
        float, Field(ge=1, le=7 * DAY_S), About("Longest `timeout_s` that a request may ask for.", EDGE, "s")
    ] = 3600.0
    default_timeout_s: Annotated[
        float,
        Field(ge=1, le=7 * DAY_S),
        About(
            "`timeout_s` of a request without one, from its arrival to its last token.",
            EDGE,
            "s",
            default="600, or the longest allowed if lower",
        ),
    ] = Field(default_factory=_default_timeout_s)
    no_worker_grace_s: Annotated[
        float,
        Field(ge=0, le=3600),
        About("How long a request waits while no worker is alive. Then 503 `no_workers`.", EDGE, "s"),
    ] = 10.0
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, le=2**30),
        About("Largest request body, unless its model takes images. Beyond it: 413.", EDGE, "bytes"),
    ] = 2**20
    max_image_body_bytes: Annotated[
        int,
        Field(ge=1024, le=2**30),
        About(
            "Largest body of a request to a model that takes images. Beyond it: 413.",
            EDGE,
            "bytes",
            default="16777216 (16 MiB), or the largest body if higher",
        ),
    ] = Field(default_factory=_max_image_body_bytes)
    header_timeout_s: Annotated[
        float, Field(gt=0, le=3600), About("Time for a request's headers to arrive.", EDGE, "s")
    ] = 10.0
    body_timeout_s: Annotated[
        float, Field(gt=0, le=3600), About("Time for a request's body to arrive. Beyond it: 408.", EDGE, "s")
    ] = 30.0
    max_connections: Annotated[
        int,
        Field(ge=1, le=1_000_000),
        About(
            "Open connections per gateway process; fewer if the hard limit of open files is too low. At the maximum a "
            "new connection replaces the one that has been idle longest; if none is idle: 503.",
            EDGE,
            "connections",
        ),
    ] = 10_000

    reasoning_field: Annotated[
        ReasoningField,
        About(
            "The field of chat completions that has a model's reasoning: the name that DeepSeek, SGLang and llama.cpp "
            "use, that of OpenRouter and of vLLM since 0.12, or both, which sends each reasoning token twice.",
            EDGE,
        ),
    ] = "reasoning_content"

    # ── streams and lifetimes ──
    sse_keepalive_s: Annotated[
        float, Field(ge=0.1, le=3600), About("Silence after which a stream sends a comment line.", EDGE, "s")
    ] = 15.0
    slow_reader_s: Annotated[
        float,
        Field(ge=0.1, le=3600),
        About("A client that takes no byte for this long is cut off and its request cancelled.", EDGE, "s"),
    ] = 30.0
    background_retention_s: Annotated[
        float,
        Field(ge=1, le=30 * DAY_S),
        About("How long the store keeps a background request after its end.", EDGE, "s"),
    ] = DAY_S
    resume_window_s: Annotated[
        float,
        Field(ge=0, le=DAY_S),
        About("How long a client may resume a broken stream before its request is cancelled.", EVERY, "s"),
    ] = 30.0
    retention_s: Annotated[
        float,
        Field(ge=1, le=7 * DAY_S),
        About("How long the store keeps a finished request and its tokens.", EVERY, "s"),
    ] = 60.0
    drain_s: Annotated[
        float,
        Field(ge=0, le=DAY_S),
        About(
            "Time that a stopping process has to finish its requests. A worker then hands the others back.", EVERY, "s"
        ),
    ] = 30.0
    supervised: Annotated[
        bool,
        About(
            "A small parent process restarts the worker when it dies, and hands its requests back at once.",
            ("worker",),
            allowed="yes or no",
        ),
    ] = True
    engine_stall_s: Annotated[
        float,
        Field(ge=1, le=DAY_S),
        About("A worker ends itself when its engine has work and makes no progress for this long.", ENGINE, "s"),
    ] = 30.0

    # ── logs ──
    log_format: Annotated[Literal["json", "text"], About("One JSON object in each line, or text for people.")] = "json"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], About("Lowest level that is logged.")] = "info"

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("must not be true or false")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _read_models(cls, value: Any) -> tuple[ModelSpec, ...]:
        return read_models(value)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_networks(cls, value: Any) -> tuple[Network, ...]:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(ip_network(item.strip() if isinstance(item, str) else item) for item in items if item != "")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _read_hosts(cls, value: Any) -> tuple[str, ...]:
        items = [str(item).strip() for item in (value.split(",") if isinstance(value, str) else value)]
        for item in filter(None, items):
            if not (item == "*" or _HOST_NAME.fullmatch(item)):
                try:
                    ip_address(item.removeprefix("[").removesuffix("]"))
                except ValueError:
                    raise ValueError(f"{item!r} is not a host name or an address (without scheme and port)") from None
        return tuple(filter(None, items))

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _read_origins(cls, value: Any) -> tuple[str, ...]:
        items = [str(item).strip() for item in (value.split(",") if isinstance(value, str) else value)]
        for item in filter(None, items):
            split = urlsplit(item)
            # Any scheme: pages of desktop apps and of browser extensions have their own; some make a new origin for
            # each window, so all of such a scheme can be named at once.
            is_origin = split.netloc and item == f"{split.scheme}://{split.netloc}"
            is_plain = "*" not in split.netloc or (split.netloc == "*" and split.scheme not in ("http", "https"))
            if item != "*" and not (is_origin and is_plain):
                raise ValueError(
                    f"{item!r} is not an origin: scheme, host and port only, as in https://app.example.org"
                )
        return tuple(filter(None, items))

    @field_validator("host", "metrics_host")
    @classmethod
    def _is_host(cls, value: str) -> str:
        if not value.isprintable() or any(c in value for c in " /@"):
            raise ValueError("is not an address")
        return value.removeprefix("[").removesuffix("]")

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        url = urlsplit(value.get_secret_value())
        server, _, kind = url.scheme.partition("+")
        is_known = url.scheme == "unix" or (server in ("redis", "rediss") and kind in ("", "sentinel", "cluster"))
        if not is_known or (url.scheme.endswith("+sentinel") and not url.path.strip("/")):
            raise ValueError("is not a Redis URL")
        hosts = url.netloc.rpartition("@")[2]
        for host in hosts.split(",") if kind else [hosts]:
            split = urlsplit(f"//{host}")
            if not (url.path if url.scheme == "unix" else split.hostname):
                raise ValueError("is not a Redis URL")
            _ = split.port  # raises for an invalid port
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _is_keys_file(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        if value == Path():
            raise ValueError("is empty, which would admit everyone; to do that, do not set it")
        if value.suffix not in (".toml", ".json"):
            raise ValueError("must end in .toml or .json")
        return value

    @field_validator("default_max_tokens", "default_timeout_s")
    @classmethod
    def _within_limit(cls, value: float, info: ValidationInfo) -> float:
        limit = {"default_max_tokens": "max_tokens_limit", "default_timeout_s": "max_timeout_s"}[info.field_name or ""]
        if limit in info.data and value > info.data[limit]:
            raise ValueError(f"must not be above {env_name(limit)} ({text_of(info.data[limit])})")
        return value

    @field_validator("max_image_body_bytes")
    @classmethod
    def _not_below_other_bodies(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("max_body_bytes", 0):
            raise ValueError(f"must not be below {env_name('max_body_bytes')} ({info.data['max_body_bytes']})")
        return value

    def is_set(self, name: str) -> bool:
        """Whether this setting was given a value, even if that is the default. `KeyError` for an unknown name."""
        return Settings.model_fields[name] is not None and name in self.model_fields_set

    def origin(self, name: str) -> str:
        """The source of the value: `default`, `code`, or the place where `load_settings` found it."""
        return self._origins.get(name, "code") if self.is_set(name) else "default"

    @property
    def notes(self) -> tuple[str, ...]:
        """The warnings of `load_settings`, one sentence each; for stderr."""
        return self._notes

    def shown(self, name: str) -> str:
        """The value as text that any user may see: no password, no secret option."""
        return masked(text_of(getattr(self, name)))


_FIRST_OF = {
    "host": "Listening",
    "redis_url": "Store and models",
    "api_keys_file": "Callers",
    "max_queue_depth": "Queue and batches",
    "max_stored_per_caller": "Storage",
    "max_tokens_limit": "Requests",
    "sse_keepalive_s": "Streams and lifetimes",
    "log_format": "Logs",
}


def sections() -> dict[str, str]:
    """The section of each setting, by its name, in the order of the declaration. `--help` is divided so."""
    found, title = {}, ""
    for name in Settings.model_fields:
        title = _FIRST_OF.get(name, title)
        found[name] = title
    return found
