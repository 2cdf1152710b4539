"""Which requests a listener answers at all, by its own address and by a request's Host and Origin.

Where no key is needed, reaching the gateway is what lets a caller in, and a web page on any site can send requests from
its visitor's browser: to a loopback address, or, once its own name resolves to that address, as if it were of the same
origin. Its requests carry its own name in Host or Origin. Knows nothing of keys but whether there are any.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from penstock.errors import ConfigError, Misdirected, OriginNotAllowed
from penstock.settings import Settings
from penstock.settings.about import env_name, flag_name

MAX_KNOWN = 256

Headers = Iterable[tuple[bytes, bytes]]


class Door:
    """Decides which requests a listener on `address` answers."""

    def __init__(self, settings: Settings, address: str) -> None:
        names = {host_name(name) for name in settings.allowed_hosts}
        self.is_loopback = is_loopback(address)
        self._judges_host = (self.is_loopback or bool(names)) and "*" not in names
        self._judges_origin = "*" not in settings.cors_origins and (
            self.is_loopback or bool(names) or settings.api_keys_file is None
        )
        # The address itself and the name that the operator wrote for it.
        own = {host_name(address), host_name(settings.host)} if self.is_loopback else set()
        self._hosts = names | own | {"localhost", "127.0.0.1", "::1"}
        self._origins = {origin.lower() for origin in settings.cors_origins}
        self._known: set[tuple[bytes | None, bytes | None]] = set()

    @property
    def judges(self) -> bool:
        """Whether there are requests that this listener refuses."""
        return self._judges_host or self._judges_origin

    def judge(self, headers: Headers) -> None:
        """Raises `Misdirected` for a Host, and `OriginNotAllowed` for an Origin, that is not answered here."""
        host = origin = None
        for name, value in headers:
            if name == b"host":
                if host is not None and host != value:
                    raise Misdirected("A request names one host; this one has two Host headers.")
                host = value
            elif name == b"origin":
                origin = value if origin is None or origin == value else b"null"
        if (host, origin) in self._known:
            return
        self._judge_host(host)
        self._judge_origin(origin, host)
        if len(self._known) < MAX_KNOWN:
            self._known.add((host, origin))

    def _judge_host(self, host: bytes | None) -> None:
        """A request without a Host (HTTP/1.0: a health check) is not a browser's, which always sends one.

        The authority of a target in absolute form has replaced the Host by now (`penstock.http.heads`).
        """
        if not host or not self._judges_host:
            return
        given = host.decode("latin-1")
        name = host_name(given)
        # No page of another site has an address of ours as its host, and health checks of a public listener do.
        if name not in self._hosts and (self.is_loopback or not is_address(name)):
            raise Misdirected(
                f"This gateway does not answer for the host {given[:100]!r}; if that is a name of this gateway, "
                f"add it to {env_name('allowed_hosts')}."
            )

    def _judge_origin(self, origin: bytes | None, host: bytes | None) -> None:
        if origin is None or not self._judges_origin:
            return
        named = origin.decode("latin-1").lower()
        scheme, _, authority = named.partition("://")
        is_web = scheme in ("http", "https")  # a page of an app may have this host as its authority, too
        is_same = is_web and bool(authority) and host is not None and authority == host.decode("latin-1").lower()
        if not is_same and named not in self._origins and f"{scheme}://*" not in self._origins:
            raise OriginNotAllowed(
                f"Web pages of {named[:100]!r} may not call this gateway; to let them, add this origin to "
                f"{env_name('cors_origins')}."
            )


def host_name(authority: str) -> str:
    """The name or address in the value of a Host header, without its port, in one spelling; "" if there is none."""
    text = authority.strip().lower()
    if text.startswith("["):
        name, closed, port = text[1:].partition("]")
        if not closed or port[:1] not in ("", ":"):
            return ""
        port = port[1:]
    elif text.count(":") > 1:
        name, port = text, ""
    else:
        name, _, port = text.partition(":")
    if port and not port.isdecimal():
        return ""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.removesuffix(".")


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether only programs of this machine reach a listener on `address`, which is not a name."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def refuse_open(settings: Settings, address: str) -> None:
    """Raises `ConfigError` for a listener that others can reach where no key is asked for, unless `insecure` is set."""
    if settings.api_keys_file is None and not settings.insecure and not is_loopback(address):
        raise ConfigError(
            f"without API keys everyone who can reach {address} could read and cancel every request: set "
            f"{env_name('api_keys_file')} (`penstock keys create` writes the file), listen on 127.0.0.1 "
            f"({env_name('host')}), or accept it with {flag_name('insecure')} ({env_name('insecure')}=yes)"
        )
