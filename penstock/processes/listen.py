"""The listening sockets of this process, bound before anything else is made: a taken port is one clear error."""

from __future__ import annotations

import errno
import socket
from typing import Any, NamedTuple

from penstock.errors import ConfigError
from penstock.http.door import refuse_open
from penstock.http.listener import BACKLOG
from penstock.settings import Settings
from penstock.settings.about import env_name


def listen_for_clients(settings: Settings) -> socket.socket:
    """At `host` and `port`. Raises `ConfigError`, also where the gateway would be open to everyone (`refuse_open`)."""
    where = _look_up(settings, "host", "port")
    refuse_open(settings, str(where.address[0]))
    try:
        return _listen(where)
    except OSError as error:
        raise _cannot_listen(settings, "host", "port", error) from error


def listen_for_operators(settings: Settings) -> socket.socket:
    """At `metrics_host` and `metrics_port`, of a worker.

    Where no `metrics_port` is set and the default one is taken, a free one. Raises `ConfigError`.
    """
    where = _look_up(settings, "metrics_host", "metrics_port")
    try:
        try:
            return _listen(where)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or settings.is_set("metrics_port"):
                raise
            return _listen(where._replace(address=(where.address[0], 0, *where.address[2:])))
    except OSError as error:
        raise _cannot_listen(settings, "metrics_host", "metrics_port", error) from error


class _Where(NamedTuple):
    family: socket.AddressFamily
    kind: socket.SocketKind
    address: tuple[Any, ...]


def _look_up(settings: Settings, host: str, port: str) -> _Where:
    """The first address of the setting `host`."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            getattr(settings, host), getattr(settings, port), type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        raise _cannot_listen(settings, host, port, error) from error
    return _Where(family, kind, address)


def _listen(where: _Where) -> socket.socket:
    """Raises `OSError`."""
    listener = socket.socket(where.family, where.kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where.address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _cannot_listen(settings: Settings, host: str, port: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot listen on {getattr(settings, host)} port {getattr(settings, port)} "
        f"({env_name(host)}, {env_name(port)}): {error.strerror}"
    )
