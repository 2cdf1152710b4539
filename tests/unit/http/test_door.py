"""Which Host and which Origin a listener answers, and which listener does not start."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, Misdirected, OriginNotAllowed, PenstockError
from penstock.http.door import MAX_KNOWN, Door, host_name, is_loopback, refuse_open
from penstock.settings import Settings


def judged(door: Door, host: bytes | None, *origins: bytes) -> str:
    """`ok`, or the code of the error."""
    headers = [(b"accept", b"*/*"), *((b"origin", origin) for origin in origins)]
    if host is not None:
        headers.insert(1, (b"host", host))
    try:
        door.judge(headers)
    except PenstockError as error:
        return error.code
    return "ok"


def at(address: str = "127.0.0.1", **settings: Any) -> Door:
    return Door(Settings(**settings), address)


GOOD = [
    *(b"localhost", b"LocalHost:8000", b"localhost.", b"localhost.:80", b"127.0.0.1", b"127.0.0.1:18000"),
    *(b"[::1]", b"[::1]:8000", b"[0:0:0:0:0:0:0:1]:8000", b" localhost "),
]
FOREIGN = [
    *(b"evil.example", b"evil.example:8000", b"localhost.evil.example", b"127.0.0.1.evil.example", b"evillocalhost"),
    *(b"localhost@evil.example", b"evil.example@localhost", b"localhost:80:80", b"localhost:x", b"[::1].evil.example"),
    *(b"[::1", b"[::1]x", b"0.0.0.0", b"0.0.0.0:8000", b"[::]", b"192.168.0.1", b"127.0.0.2", b"localhost..", b"."),
    *(b"[::ffff:8.8.8.8]", b"localhost/", b"localhost evil.example", b"localhost,evil.example", b"\xe9vil", b"*"),
]


@pytest.mark.parametrize("host", GOOD)
def test_a_loopback_listener_answers_for_the_names_of_this_machine(host: bytes) -> None:
    assert judged(at(), host) == "ok"


@pytest.mark.parametrize("host", FOREIGN)
def test_and_for_no_other(host: bytes) -> None:
    door = at()
    assert [judged(door, host) for _ in range(2)] == ["misdirected_request"] * 2


def test_a_request_without_a_host_does_not_come_from_a_browser() -> None:
    assert judged(at(), None) == judged(at(), b"") == "ok"


def test_two_hosts_are_refused() -> None:
    with pytest.raises(Misdirected, match="two Host headers"):
        at().judge([(b"host", b"localhost"), (b"host", b"evil.example")])


def test_configured_names_are_added() -> None:
    door = at(allowed_hosts="gw.example.org,[2001:db8::1]")
    for host in (b"gw.example.org", b"GW.example.org.:443", b"[2001:DB8:0::1]:80", b"localhost"):
        assert judged(door, host) == "ok"
    with pytest.raises(Misdirected, match=r"'evil\.example'; .* add it to PENSTOCK_ALLOWED_HOSTS\.$"):
        door.judge([(b"host", b"evil.example")])
    assert judged(at(allowed_hosts="*"), b"evil.example") == "ok"


def test_the_name_that_the_operator_wrote_is_allowed() -> None:
    assert judged(at("127.0.1.1", host="box.example.org"), b"box.example.org:8000") == "ok"
    assert judged(at("127.0.1.1", host="box.example.org"), b"127.0.1.1") == "ok"


def test_on_another_address_names_count_only_where_they_are_configured() -> None:
    assert judged(at("192.0.2.1", insecure=True), b"anything") == "ok"
    door = at("192.0.2.1", insecure=True, allowed_hosts="gw.example.org")
    for host in (b"gw.example.org", b"localhost", b"192.0.2.1:8000", b"[2001:db8::1]"):  # an address: a health check
        assert judged(door, host) == "ok"
    assert judged(door, b"evil.example") == judged(door, b"192.0.2.1.evil.example") == "misdirected_request"


@pytest.mark.parametrize(
    ("host", "origin", "code"),
    [
        (b"localhost:8000", b"http://localhost:8000", "ok"),
        (b"localhost:8000", b"HTTP://LocalHost:8000", "ok"),
        (b"gw.example.org", b"https://gw.example.org", "ok"),  # a proxy with TLS in front
        (b"localhost:8000", b"http://localhost:3000", "origin_not_allowed"),
        (b"localhost:8000", b"http://localhost", "origin_not_allowed"),
        (b"localhost:8000", b"https://evil.example", "origin_not_allowed"),
        (b"localhost:8000", b"null", "origin_not_allowed"),
        (b"localhost:8000", b"", "origin_not_allowed"),
        (b"localhost", b"localhost", "origin_not_allowed"),
        (b"localhost", b"tauri://localhost", "origin_not_allowed"),
        (b"localhost", b"vscode-webview://1a2b", "origin_not_allowed"),
        (None, b"http://localhost", "origin_not_allowed"),
        (b"", b"http://", "origin_not_allowed"),
        (b"localhost:8000", b"https://app.example.org", "ok"),
        (b"localhost:8000", b"https://app.example.org.evil.example", "origin_not_allowed"),
    ],
)
def test_a_foreign_page_is_refused_unless_it_is_named(host: bytes | None, origin: bytes, code: str) -> None:
    door = at(cors_origins="https://app.example.org", allowed_hosts="gw.example.org")
    assert [judged(door, host, origin) for _ in range(2)] == [code] * 2


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        (b"app://obsidian.md", "ok"),
        (b"app://other", "origin_not_allowed"),
        (b"vscode-webview://1a2b", "ok"),
        (b"vscode-webviewx://1a2b", "origin_not_allowed"),
        (b"http://vscode-webview", "origin_not_allowed"),
    ],
)
def test_an_app_is_refused_unless_it_or_its_scheme_is_named(origin: bytes, code: str) -> None:
    assert judged(at(cors_origins="app://obsidian.md,vscode-webview://*"), b"localhost", origin) == code


def test_two_origins_are_refused_and_the_message_names_the_setting() -> None:
    assert judged(at(), b"localhost", b"http://localhost", b"http://evil.example") == "origin_not_allowed"
    with pytest.raises(OriginNotAllowed, match="PENSTOCK_CORS_ORIGINS"):
        at().judge([(b"host", b"localhost"), (b"origin", b"http://evil.example")])


def test_where_keys_are_asked_for_a_public_listener_leaves_origins_to_them(tmp_path: Any) -> None:
    keys = tmp_path / "keys.toml"
    assert judged(at("192.0.2.1", api_keys_file=keys), b"gw", b"http://evil.example") == "ok"
    assert judged(at("192.0.2.1", insecure=True), b"gw", b"http://evil.example") == "origin_not_allowed"
    assert judged(at(cors_origins="*"), b"localhost", b"null") == "ok"
    assert not at("192.0.2.1", api_keys_file=keys).judges
    assert at().judges


def test_the_memory_of_hosts_is_bounded() -> None:
    door = at()
    for port in range(3 * MAX_KNOWN):
        assert judged(door, b"localhost:%d" % port) == "ok"
    assert len(door._known) == MAX_KNOWN


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_whatever_is_sent_is_judged(host: bytes, origin: bytes) -> None:
    assert judged(at(), host, origin) in ("misdirected_request", "origin_not_allowed")
    host_name(host.decode("latin-1"))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_a_loopback_address_needs_no_keys(address: str) -> None:
    assert is_loopback(address)
    refuse_open(Settings(), address)


EVERY = "0.0.0.0"  # noqa: S104 - judged, not bound


@pytest.mark.parametrize("address", [EVERY, "::", "192.0.2.1", "::ffff:192.0.2.1", "fe80::1%eth0"])
def test_another_address_needs_keys_or_the_word_insecure(address: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        refuse_open(Settings(), address)
    refuse_open(Settings(insecure=True), address)
    refuse_open(Settings(api_keys_file=tmp_path / "keys.toml"), address)
