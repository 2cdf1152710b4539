"""API keys: who is let in, what is stored, and what happens when the file changes under a running gateway."""

from __future__ import annotations

import base64
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.callers.keys import (
    Key,
    KeyRing,
    create_key,
    exposure,
    hash_secret,
    read_keys,
    retire_old_secret,
    revoke_key,
    rotate_key,
    write_keys,
)
from penstock.errors import ConfigError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["keys.toml", "keys.json"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_the_file_may_begin_with_a_byte_order_mark(path: Path) -> None:
    key, text = create_key(path, "Ada")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert KeyRing(path).verify(text) == key


def test_a_created_key_is_verified_and_nothing_else_is(path: Path) -> None:
    key, text = create_key(path, "Ada", rpm=60, burst=5, models=["m"], admin=True)
    other, _ = create_key(path, "Bob")
    ring = KeyRing(path)
    assert len(ring) == 2
    assert ring.verify(text) == key
    assert (key.name, key.rpm, key.burst, key.models, key.admin) == ("Ada", 60, 5, ("m",), True)
    assert (key.metrics, other.metrics) == (False, False)
    key_id, _, secret = text.partition(".")
    for wrong in (
        "",
        ".",
        key_id,
        f"{key_id}.",
        f"{key_id}.{secret}x",
        f"nobody.{secret}",
        secret,
        f"{other.id}.{secret}",
    ):
        assert ring.verify(wrong) is None, wrong
    assert ring.verify(f"{key_id}.\ud800") is None


def test_the_secret_is_long_and_only_its_hash_is_stored_readable_by_its_owner(path: Path) -> None:
    key, text = create_key(path, "Ada")
    secret = text.partition(".")[2]
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    assert secret not in path.read_text()
    assert key.hashes == (hash_secret(secret),)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_may_use() -> None:
    assert Key(id="a", hashes=()).may_use("m")
    assert Key(id="a", hashes=(), models=("m",)).may_use("m")
    assert not Key(id="a", hashes=(), models=("m",)).may_use("n")
    assert not Key(id="a", hashes=(), models=()).may_use("m")


def test_rotation_keeps_two_secrets_alive(path: Path) -> None:
    key, first = create_key(path, "Ada")
    second = rotate_key(path, key.id)
    assert [KeyRing(path).verify(text) is not None for text in (first, second)] == [True, True]
    third = rotate_key(path, key.id)
    assert [KeyRing(path).verify(text) is not None for text in (first, second, third)] == [False, True, True]
    assert retire_old_secret(path, key.id)
    assert [KeyRing(path).verify(text) is not None for text in (second, third)] == [False, True]
    assert not retire_old_secret(path, key.id)


def test_a_revoked_key_ends_and_its_id_stays(path: Path) -> None:
    key, text = create_key(path, "Ada")
    assert revoke_key(path, key.id)
    assert KeyRing(path).verify(text) is None
    assert not revoke_key(path, key.id)
    assert [item.id for item in read_keys(path)] == [key.id]


def test_commands_on_an_unknown_key(path: Path) -> None:
    create_key(path, "Ada")
    for command in (revoke_key, rotate_key, retire_old_secret):
        with pytest.raises(ConfigError, match="no such API key: 'pk_0'"):
            command(path, "pk_0")


def test_a_changed_file_is_read_again_once_a_second_at_most(path: Path) -> None:
    clock = Clock()
    _, old = create_key(path, "Ada")
    ring = KeyRing(path, clock)
    key, new = create_key(path, "Bob")
    clock.now += 0.9
    assert ring.verify(new) is None
    clock.now += 0.1
    assert ring.verify(new) is not None
    revoke_key(path, key.id)
    clock.now += 1
    assert ring.verify(new) is None
    assert ring.verify(old) is not None


def test_a_file_that_breaks_keeps_the_old_keys_and_is_logged_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    _, text = create_key(path, "Ada")
    ring = KeyRing(path, clock)
    whole = path.read_bytes()
    for broken in (b"{[", None):
        caplog.clear()
        path.unlink() if broken is None else path.write_bytes(broken)
        for _ in range(3):
            clock.now += 1
            assert ring.verify(text) is not None
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert text.partition(".")[2] not in caplog.text
    path.write_bytes(whole)
    create_key(path, "Bob")
    clock.now += 1
    ring.verify(text)
    assert len(ring) == 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_revocation_that_could_not_be_read_is_read_as_soon_as_it_can_be(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    clock = Clock()
    key, text = create_key(path, "Ada")
    ring = KeyRing(path, clock)
    revoke_key(path, key.id)

    def fails(*args: object, **kwargs: object) -> str:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
        for _ in range(150):
            clock.now += 1
            assert ring.verify(text) is not None
    assert (ring.stale_s, ring.is_live(key.id)) == (149.0, True)
    assert os.strerror(number) in ring.trouble
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [words.partition(" s now")[0].rpartition(" ")[2] for words in errors] == ["0", "60", "120"]
    clock.now += 1
    assert ring.verify(text) is None
    assert (ring.stale_s, ring.trouble, ring.is_live(key.id)) == (0.0, "", False)


def test_a_file_that_keeps_its_time_and_size_is_read_again_all_the_same(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "keys.json"
    _, text = create_key(path, "Ada")
    ring = KeyRing(path, clock)
    before = path.stat()
    path.write_text(path.read_text().replace("sha256:", "sha256:", 1).replace('"pk_', '"pk-'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    clock.now += 1
    assert ring.verify(text) is None


def test_a_file_that_was_replaced_behind_a_mount_is_reported(tmp_path: Path) -> None:
    """What a container sees of a mounted file that was replaced outside: the old one, without a name."""
    clock, path = Clock(), tmp_path / "keys.toml"
    _, text = create_key(path, "Ada")
    with path.open() as mounted:
        ring = KeyRing(Path(f"/proc/self/fd/{mounted.fileno()}"), clock)
        clock.now += 1
        assert ring.verify(text) is not None
        assert ring.trouble == ""
        create_key(path, "Bob")
        clock.now += 1
        assert ring.verify(text) is not None
        assert "mount its folder" in ring.trouble


COMMANDS: list[Callable[[Path, str], object]] = [
    lambda path, key_id: create_key(path, "Bob"),
    rotate_key,
    retire_old_secret,
    revoke_key,
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_file_keeps_its_owner_and_mode(path: Path, command: Callable[[Path, str], object]) -> None:
    key, _ = create_key(path, "Ada")
    path.chmod(0o640)
    if os.geteuid() == 0:  # as an administrator does for a gateway that runs as another user
        os.chown(path, 65534, 65533)
    before, inode = path.stat(), path.stat().st_ino
    command(path, key.id)
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != inode


def test_a_file_whose_owner_could_not_be_kept_stays_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = create_key(path, "Ada")

    def may_not(*args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", may_not)
    with pytest.raises(ConfigError, match=r"belongs to user .* run this as that user, or as root"):
        revoke_key(path, key.id)
    assert KeyRing(path).verify(text) is not None
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_stays_a_link_and_the_file_behind_it_changes(path: Path, command: Callable[[Path, str], object]) -> None:
    (path.parent / "real").mkdir()
    there = path.parent / "real" / path.name
    key, _ = create_key(there, "Ada")
    rotate_key(there, key.id)
    path.symlink_to(f"real/{path.name}")
    before = read_keys(there)
    command(path, key.id)
    assert path.is_symlink()
    assert read_keys(there) == read_keys(path) != before


def test_two_commands_are_kept_apart_by_the_folder_of_the_file_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path.parent / "real").mkdir()
    path.symlink_to(f"real/{path.name}")
    locked: list[str] = []
    monkeypatch.setattr(fcntl, "flock", lambda folder, _: locked.append(os.readlink(f"/proc/self/fd/{folder}")))
    create_key(path, "Ada")
    create_key(path.parent / "real" / path.name, "Bob")
    assert locked == [os.path.realpath(path.parent / "real")] * 2


def test_a_link_to_nothing_is_where_the_first_key_is_written(path: Path) -> None:
    path.symlink_to(path.with_name(f"other{path.suffix}"))
    key, _ = create_key(path, "Ada")
    assert read_keys(path.with_name(f"other{path.suffix}")) == (key,)


def test_names_that_would_keep_the_old_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key, text = create_key(path, "Ada")
    os.link(path, tmp_path / "second.toml")
    with pytest.raises(ConfigError, match="2 names"):
        revoke_key(path, key.id)
    (tmp_path / "keys.json").symlink_to("keys.toml")
    with pytest.raises(ConfigError, match=r"both must end in \.toml"):
        write_keys(tmp_path / "keys.json", [key])
    assert KeyRing(path).verify(text) is not None


@pytest.mark.parametrize(
    ("mode", "folder", "words"),
    [
        (0o600, 0o755, ""),
        (0o640, 0o755, ""),
        (0o644, 0o755, "every user of this machine may read"),
        (0o620, 0o755, "others than its owner may write"),
        (0o666, 0o755, "others than its owner may write"),
        (0o600, 0o777, "every user may replace"),
        (0o600, 0o1777, ""),
    ],
)
def test_a_file_that_others_can_reach_is_pointed_out(
    path: Path, caplog: pytest.LogCaptureFixture, mode: int, folder: int, words: str
) -> None:
    create_key(path, "Ada")
    path.chmod(mode)
    path.parent.chmod(folder)
    said = exposure(path)
    assert words in said
    assert bool(said) == bool(words)
    assert (KeyRing(path).exposure, [record.getMessage() for record in caplog.records]) == (
        said,
        [said] if said else [],
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("k.toml", "keys = 1", "Expected `array`"),
        ("k.toml", "[[keys]]\nid = 'a.b'\nhashes = []", "id"),
        ("k.toml", "[[keys]]\nid = 'a'\nhashes = ['plain']", "hashes"),
        ("k.toml", "[[keys]]\nid = 'a'", "hashes"),
        ("k.toml", "[[keys]]\nid = 'a'\nhashes = []\nadmn = true", "admn"),
        ("k.toml", "[[keys]]\nid = 'a'\nhashes = []\nrpm = -1", "rpm"),
        ("k.toml", "[[keys]]\nid = 'a'\nhashes = []\n[[keys]]\nid = 'a'\nhashes = []", "has a twice"),
        ("k.toml", "[[keys", "broken"),
        ("k.json", "[" * 100_000, "broken"),
        ("k.json", "nonsense", "broken"),
        ("k.json", None, "cannot be read"),
    ],
)
def test_a_file_that_is_broken_at_the_start_stops_it(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        KeyRing(tmp_path / name)
    assert words in caught.value.message
    assert name in caught.value.message


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        create_key(tmp_path / "nowhere" / "k.toml", "Ada")
    with pytest.raises(ConfigError, match=r"ends in \.toml or \.json"):
        create_key(tmp_path / "k.yaml", "Ada")


optional = st.none() | st.integers(1, 10**9)
keys = st.builds(
    Key,
    id=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    hashes=st.lists(st.text(max_size=5).map(lambda text: hash_secret(text)), max_size=2).map(tuple),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    rpm=optional,
    burst=optional,
    models=st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3).map(tuple),
    admin=st.booleans(),
    metrics=st.booleans(),
    revoked=st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(keys, max_size=4, unique_by=lambda key: key.id))
def test_written_keys_are_read_back(tmp_path: Path, several: list[Key]) -> None:
    for name in ("k.toml", "k.json"):
        write_keys(tmp_path / name, several)
        assert read_keys(tmp_path / name) == tuple(several)
