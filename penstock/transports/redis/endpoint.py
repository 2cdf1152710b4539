"""Where the store is and how to be let in: a Redis URL, parsed. Knows nothing of sockets that are already open.

`redis://[[user]:password@]host[:port][/db]`, `rediss://…` (TLS), `unix:///path`. redis-py reads the URL; nothing
else of it is used here. A password never appears in a `repr`, a log line or an error.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.connection import SSLConnection, parse_url

from penstock.errors import ConfigError


@dataclass(slots=True, frozen=True)
class Endpoint:
    """One Redis server. `path` is a Unix socket's and then `host` and `port` say nothing."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"{self.host}:{self.port}" + (f"/{self.db}" if self.db else "") + (" (TLS)" if self.tls else "")

    def greeting(self, name: str) -> list[tuple[str, ...]]:
        """The commands that open a connection called `name`."""
        commands: list[tuple[str, ...]] = []
        if self.password is not None:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.db:
            commands.append(("SELECT", str(self.db)))
        commands.append(("CLIENT", "SETNAME", name))
        return commands


def parse(url: str) -> Endpoint:
    """Parse a Redis URL; `ConfigError`, without the URL's secrets, if it is none."""
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise ConfigError(f"the Redis URL cannot be read: {error}") from error
    return Endpoint(
        host=options.get("host", "localhost"),
        port=int(options.get("port", 6379)),
        path=options.get("path"),
        db=int(options.get("db", 0)),
        username=options.get("username"),
        password=options.get("password"),
        tls=_tls(options) if options.get("connection_class") is SSLConnection else None,
    )


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    """`ssl_cert_reqs=none|required`, `ssl_check_hostname`, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`."""
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if str(options.get("ssl_cert_reqs", "required")).lower() == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif str(options.get("ssl_check_hostname", "true")).lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
