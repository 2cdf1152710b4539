"""The caller of a request: its key and address. Knows nothing of HTTP beyond header values."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from penstock.callers.keys import Key, KeyRing
from penstock.errors import Unauthorized
from penstock.settings.about import env_name
from penstock.settings.declaration import Network

MAX_HOPS = 32  # of X-Forwarded-For that are looked at, from the right; a client may write thousands


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request. `id` is the verified key's, "" without keys; `address` is what limits count by then."""

    id: str
    address: str
    key: Key | None = None

    @property
    def rate_key(self) -> str:
        return f"key:{self.id}" if self.id else f"ip:{self.address}"


class Callers:
    """Identifies callers. `trusted_proxies`: those whose X-Forwarded-For is used."""

    def __init__(self, keys: KeyRing | None = None, trusted_proxies: Sequence[Network] = ()) -> None:
        self._keys = keys
        self._trusted = tuple(trusted_proxies)

    def identify(self, token: str | None, peer: str, forwarded: str | None) -> Caller:
        """The caller of a request: `token` from its headers, its `peer` address, its X-Forwarded-For.

        Without a keys file any token is accepted and means nothing. Raises `Unauthorized`.
        """
        address = self._address(peer, forwarded)
        if self._keys is None:
            return Caller("", address)
        key = self._keys.verify(token) if token else None
        if key is None:
            error = Unauthorized(
                "A valid API key is needed: Authorization: Bearer <key>, X-API-Key or api-key; the keys are those of "
                f"{env_name('api_keys_file')}."
            )
            error.headers = {"www-authenticate": 'Bearer realm="penstock"'}
            raise error
        return Caller(key.id, address, key)

    def _address(self, peer: str, forwarded: str | None) -> str:
        """The nearest address that is not one of our own proxies, read from the right. IPv6 counts by /64."""
        last = (forwarded or "").rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        hops = [_without_port(part.strip()) for part in last if part.strip()]
        address = peer
        while hops and self._is_trusted(address):
            address = hops.pop()
        return _counted_as(address)

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


def _without_port(hop: str) -> str:
    """The address of a hop, without the port and the brackets that some proxies write: `192.0.2.1:80`, `[::1]:80`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


@lru_cache(maxsize=4096)
def _counted_as(address: str) -> str:
    """An address as limits count it. Cached: the same clients come again and again."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
