"""Texts in the formats that a JSON Schema may ask for (`format`)."""

from __future__ import annotations

from collections.abc import Callable

from penstock.backends.mock.schema.draw import Draw
from penstock.backends.mock.sentences import NOUNS


def noun(draw: Draw) -> str:
    """A word."""
    return NOUNS[draw.below(len(NOUNS))]


def _date(draw: Draw) -> str:
    return f"{2000 + draw.below(50)}-{1 + draw.below(12):02}-{1 + draw.below(28):02}"


def _time(draw: Draw) -> str:
    return f"{draw.below(24):02}:{draw.below(60):02}:{draw.below(60):02}Z"


def _uuid(draw: Draw) -> str:
    digits = f"{draw.below(1 << 64):016x}{draw.below(1 << 64):016x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _host(draw: Draw) -> str:
    return f"{noun(draw)}.example.com"


FORMATS: dict[str, Callable[[Draw], str]] = {
    "date": _date,
    "time": _time,
    "date-time": lambda draw: f"{_date(draw)}T{_time(draw)}",
    "duration": lambda draw: f"P{1 + draw.below(30)}DT{1 + draw.below(23)}H",
    "email": lambda draw: f"{noun(draw)}@example.com",
    "idn-email": lambda draw: f"{noun(draw)}@example.com",
    "hostname": _host,
    "idn-hostname": _host,
    "ipv4": lambda draw: f"192.0.2.{draw.below(256)}",
    "ipv6": lambda draw: f"2001:db8::{1 + draw.below(0xFFFF):x}",
    "uri": lambda draw: f"https://{_host(draw)}/{noun(draw)}",
    "uri-reference": lambda draw: f"/{noun(draw)}",
    "uri-template": lambda draw: f"/{noun(draw)}/{{id}}",
    "iri": lambda draw: f"https://{_host(draw)}/{noun(draw)}",
    "iri-reference": lambda draw: f"/{noun(draw)}",
    "uuid": _uuid,
    "json-pointer": lambda draw: f"/{noun(draw)}",
    "relative-json-pointer": lambda draw: f"{draw.below(4)}/{noun(draw)}",
    "regex": lambda draw: f"^{noun(draw)}$",
    "byte": lambda draw: "cGVuc3RvY2s=",
    "binary": noun,
    "password": noun,
}
