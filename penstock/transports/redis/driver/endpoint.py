"""The address and the credentials of the store: a Redis URL, parsed. Knows nothing of sockets that are already open.

    redis://[[user]:password@]host[:port][/db]                           one server; unix:///path for a socket
    redis+sentinel://[[user]:password@]host[:port],…/service[/db]        the master that the sentinels name (26379)
    redis+cluster://[[user]:password@]host[:port],…                      a cluster, found from any of its nodes

`rediss…` is each of them with TLS. URLs mean what they mean to redis-py, which the tests compare this with: to import
it for its parser alone would cost every process 7 MB. A password never appears in a `repr`, a log line or an error.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from penstock.errors import ConfigError

Kind = Literal["single", "sentinel", "cluster"]

_TLS_OPTIONS = ("ca_certs", "ca_path", "cert_reqs", "check_hostname", "certfile", "keyfile", "password")
_OPTIONS = {"db", "username", "password", *(f"ssl_{name}" for name in _TLS_OPTIONS)}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_DEFAULT_PORT = {"single": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(slots=True, frozen=True)
class Endpoint:
    """One Redis server. `path` is a Unix socket's; `host` and `port` are unused then.

    `is_master`: a connection to it must check that it still is one.
    """

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    is_master: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"{self.host}:{self.port}" + (f"/{self.db}" if self.db else "") + (" (TLS)" if self.tls else "")

    def at(self, host: str, port: int) -> Endpoint:
        """The same credentials for another host and port."""
        return replace(self, host=host, port=port)

    async def locate(self) -> Endpoint:
        return self

    def greeting(self, name: str) -> list[tuple[str, ...]]:
        """The commands that open a connection called `name`."""
        commands: list[tuple[str, ...]] = []
        if self.password is not None:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.db:
            commands.append(("SELECT", str(self.db)))
        commands.append(("CLIENT", "SETNAME", name))
        return commands


class Locator(Protocol):
    """Finds the current address of a server; called before each connection. An `Endpoint` is its own."""

    async def locate(self) -> Endpoint:
        """`StoreUnavailable` if it is not known."""


@dataclass(slots=True, frozen=True)
class Deployment:
    """A parsed URL. `known`: the server, the sentinels, or the cluster's nodes to ask first.

    `master`: the credentials for the server that the sentinels name; `service`: their name for it.
    """

    kind: Kind
    known: tuple[Endpoint, ...]
    master: Endpoint = Endpoint()
    service: str = ""


def parse(url: str) -> Deployment:
    """Parse a Redis URL; `ConfigError`, without the URL's secrets, if it is not one."""
    try:
        return _parse(url)
    except OSError as error:  # ssl.SSLError is one
        raise _wrong(f"a file of its ssl_ options: {error}") from error
    except ValueError:  # it may quote a part of the password
        forms = "redis[s]://, redis[s]+sentinel://, redis[s]+cluster:// and unix://"
        raise _wrong(f"the forms are {forms}; in a password % / @ : and the like are written as %25 %2F …") from None


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"the Redis URL cannot be read: {what}")


def _parse(url: str) -> Deployment:
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    if kind not in ("", "sentinel", "cluster"):
        raise _wrong("after redis+ comes sentinel or cluster")
    if not kind:
        return Deployment("single", (_endpoint(url, _OPTIONS),))
    split = urlsplit(url)
    login, at, hosts = split.netloc.rpartition("@")
    addresses = [_address(host, _DEFAULT_PORT[kind]) for host in hosts.split(",")]
    options = f"?{split.query}" if split.query else ""
    path = [unquote(part) for part in split.path.split("/")[1:] if part]
    if kind == "cluster":
        if path not in ([], ["0"]):
            raise _wrong("a cluster has one database only: nothing may follow its nodes")
        node = _endpoint(f"{scheme}://{login}{at}node{options}", _OPTIONS)
        if node.db:
            raise _wrong("a cluster has database 0 only")
        return Deployment("cluster", tuple(node.at(*address) for address in addresses))
    if len(path) not in (1, 2):
        raise _wrong("the name of the service must follow the sentinels: …/service or …/service/db")
    master = _endpoint(f"{scheme}://{login}{at}master/{''.join(path[1:])}{options}", _OPTIONS | _SENTINEL_OPTIONS)
    given = _options(f"redis://sentinel{options}")
    sentinel = replace(master, db=0, username=given.get("sentinel_username"), password=given.get("sentinel_password"))
    known = tuple(sentinel.at(*address) for address in addresses)
    return Deployment("sentinel", known, replace(master, is_master=True), path[0])


def _address(text: str, default_port: int) -> tuple[str, int]:
    split = urlsplit(f"//{text}")
    if not split.hostname:
        raise _wrong("a host is missing: HOST:PORT,HOST:PORT,…")
    return unquote(split.hostname), split.port or default_port


def _endpoint(url: str, known: set[str]) -> Endpoint:
    options = _options(url)
    if strange := sorted(set(options) - known - {"host", "port", "path"}):
        raise _wrong(f"no such option: {', '.join(strange)}; there are {', '.join(sorted(known))}")
    path = urlsplit(url).path.strip("/")
    if "path" not in options and path and not path.isdecimal():
        raise _wrong("the database must be a number")
    return Endpoint(
        host=options.get("host", "localhost"),
        port=int(options.get("port", 6379)),
        path=options.get("path"),
        db=int(options.get("db", 0)),
        username=options.get("username"),
        password=options.get("password"),
        tls=_tls(options) if urlsplit(url).scheme == "rediss" else None,
    )


def _options(url: str) -> dict[str, Any]:
    """`host`, `port`, `path`, `db`, `username`, `password` and the query's options. Raises `ValueError`."""
    split = urlsplit(url)
    options: dict[str, Any] = {name: values[0] for name, values in parse_qs(split.query).items()}
    if split.username:
        options["username"] = unquote(split.username)
    if split.password:
        options["password"] = unquote(split.password)
    if split.scheme == "unix":
        options["path"] = unquote(split.path)
    elif split.scheme in ("redis", "rediss"):
        if split.hostname:
            options["host"] = unquote(split.hostname)
        if split.port:
            options["port"] = split.port
        if split.path.strip("/").isdecimal():
            options.setdefault("db", split.path.strip("/"))
    else:
        raise ValueError(f"{split.scheme!r} is not a scheme of a Redis URL")
    return options


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    """The words are redis-py's: `ssl_cert_reqs` is `none` or `required`; the files are PEM."""
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    wanted = str(options.get("ssl_cert_reqs", "required")).lower()
    if wanted not in ("none", "optional", "required"):
        raise _wrong("ssl_cert_reqs is none or required")
    if wanted == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif str(options.get("ssl_check_hostname", "true")).lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
    return context
