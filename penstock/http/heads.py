"""The host that a request's head names and the framing of its body, and which heads are refused."""

from __future__ import annotations

import re

from penstock.errors import InvalidRequest, UnsupportedMediaType

_ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#@]+)(?P<rest>[/?#].*)?", re.IGNORECASE | re.DOTALL)


def judge_head(target: bytes, headers: list[tuple[bytes, bytes]], version: str) -> bytes:
    """The target without scheme and authority. An authority replaces the value of Host in `headers` (RFC 9112, 3.2.2).

    Raises `InvalidRequest` for hosts or targets that are unclear and for a transfer coding in HTTP/1.0, which has none
    (RFC 9112, 6.1), and `UnsupportedMediaType` for a transfer coding that is not decoded here: a proxy must not read
    another request in these bytes than this server does.
    """
    num_hosts = num_codings = 0
    for name, value in headers:
        if name == b"host":
            num_hosts += 1
        elif name == b"transfer-encoding":
            num_codings += 1
            if num_codings > 1 or value.strip(b" \t").lower() != b"chunked":
                raise UnsupportedMediaType("The only transfer coding that is decoded here is chunked, given once.")
    if num_codings and version == "1.0":
        raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding; send a Content-Length, or HTTP/1.1.")
    if num_hosts != 1 and (num_hosts > 1 or version != "1.0"):
        raise InvalidRequest(f"A request must have exactly one Host header; this one has {num_hosts}.")
    return target if target.startswith(b"/") or target == b"*" else _take_host(target, headers)


def _take_host(target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The origin form of an absolute target, whose authority becomes the Host. In place: the scope holds `headers`."""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or absolute["authority"].startswith(b":"):
        raise InvalidRequest("The request's target must be a path, or an absolute http or https URL with a host.")
    headers[:] = [header for header in headers if header[0] != b"host"]
    headers.append((b"host", absolute["authority"]))
    rest: bytes = absolute["rest"] or b"/"
    return rest if rest.startswith(b"/") else b"/" + rest
