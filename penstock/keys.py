"""API keys: who may call, and the file that says so. Knows nothing of HTTP, and authentication never needs Redis.

A key's text is `<id>.<secret>`. The id is public: logs, metrics and Redis see it alone. The secret is 32 random bytes
and is stored as its SHA-256. A slow password hash protects secrets that people choose and that can be guessed; 256
random bits cannot be, so a plain hash is as strong and costs a microsecond per request instead of a tenth of a second.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from penstock.errors import ConfigError

MAX_SECRETS = 2  # the new one and the one that is being replaced
CHECK_INTERVAL_S = 1.0

_HASH = r"^sha256:[0-9a-f]{64}$"
_NOBODY = "sha256:" + "0" * 64  # compared against where there is no hash, so that an unknown id costs the same

_log = logging.getLogger("penstock.keys")


class Key(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One caller. `rpm` and `burst`: limits of its own, None for the configured ones, rpm 0 for none at all.

    `models`: the only models that it may use; None for all. `admin`: may cancel and look at other callers' requests.
    """

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    hashes: Annotated[tuple[Annotated[str, Meta(pattern=_HASH)], ...], Meta(max_length=MAX_SECRETS)]
    name: Annotated[str, Meta(max_length=200)] = ""
    rpm: Annotated[int, Meta(ge=0, le=10**9)] | None = None
    burst: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    models: tuple[str, ...] | None = None
    admin: bool = False
    revoked: bool = False

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[Key, ...] = ()


class KeyRing:
    """The keys of a file, read again when it changes (looked at once a second at most).

    A file that is broken at the start is a `ConfigError`; one that breaks later is logged as an error and the keys
    read before stay in force. `clock` is monotonic seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._seen = _signature(path)
        self._keys = {key.id: key for key in read_keys(path)}
        self._look_at = clock() + CHECK_INTERVAL_S

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self, token: str) -> Key | None:
        """The key whose text `token` is, or None: unknown, wrong or revoked. Takes as long for each of these."""
        self._refresh()
        key_id, _, secret = token.partition(".")
        key = self._keys.get(key_id)
        given = hash_secret(secret)
        hashes = (key.hashes if key else ()) + (_NOBODY,) * MAX_SECRETS
        matches = [hmac.compare_digest(given, known) for known in hashes[:MAX_SECRETS]]
        return key if key and any(matches) and not key.revoked else None

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + CHECK_INTERVAL_S
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except ConfigError as error:
            _log.error("the API keys file is broken, the keys read before stay in force: %s", error)
        else:
            _log.info("read %d API keys again", len(self._keys))


def hash_secret(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    """32 random bytes, base64url."""
    return secrets.token_urlsafe(32)


def create_key(
    path: Path,
    name: str,
    *,
    rpm: int | None = None,
    burst: int | None = None,
    models: Iterable[str] | None = None,
    admin: bool = False,
) -> tuple[Key, str]:
    """Add a key to the file, which is made if need be; the key and its text, which is shown this once."""
    secret = new_secret()
    allowed = None if models is None else tuple(models)
    with _edit(path, missing_ok=True) as keys:
        while (key_id := "pk_" + secrets.token_hex(6)) in keys:
            pass
        key = Key(
            id=key_id, hashes=(hash_secret(secret),), name=name, rpm=rpm, burst=burst, models=allowed, admin=admin
        )
        keys[key_id] = key
    return key, f"{key_id}.{secret}"


def rotate_key(path: Path, key_id: str) -> str:
    """Give the key a new secret and return its text. The newest secret before it stays live, older ones end."""
    secret = new_secret()
    with _edit(path) as keys:
        key = _find(keys, key_id)
        keys[key_id] = msgspec.structs.replace(key, hashes=(hash_secret(secret), *key.hashes)[:MAX_SECRETS])
    return f"{key_id}.{secret}"


def retire_old_secret(path: Path, key_id: str) -> bool:
    """End a rotation: only the newest secret stays. False if there was only one."""
    with _edit(path) as keys:
        key = _find(keys, key_id)
        keys[key_id] = msgspec.structs.replace(key, hashes=key.hashes[:1])
    return len(key.hashes) > 1


def revoke_key(path: Path, key_id: str) -> bool:
    """End the key; its line stays, so that the id is never given out again. False if it was revoked before."""
    with _edit(path) as keys:
        key = _find(keys, key_id)
        keys[key_id] = msgspec.structs.replace(key, revoked=True)
    return not key.revoked


def read_keys(path: Path) -> tuple[Key, ...]:
    """Raises `ConfigError` that says where the file is wrong, never with a hash in it."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        keys = msgspec.convert(tables, _File, strict=True).keys
    except OSError as error:
        raise ConfigError(f"{path}: the API keys file cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the API keys file is broken: {error}") from error
    ids = [key.id for key in keys]
    if twice := sorted({key_id for key_id in ids if ids.count(key_id) > 1}):
        raise ConfigError(f"{path}: the API keys file has {', '.join(twice)} twice")
    return keys


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Replace the file at once, readable by its owner alone. Comments that it held are lost."""
    text = _to_json(keys) if path.suffix == ".json" else _to_toml(keys)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def _edit(path: Path, *, missing_ok: bool = False) -> Iterator[dict[str, Key]]:
    """The keys by id, written back at the end. A lock on the folder keeps two commands apart."""
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(f"{path}: an API keys file ends in .toml or .json")
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = {} if missing_ok and not path.exists() else {key.id: key for key in read_keys(path)}
        yield keys
        try:
            write_keys(path, keys.values())
        except OSError as error:
            raise ConfigError(f"{path}: the API keys file cannot be written: {error.strerror}") from error
    finally:
        os.close(folder)


def _find(keys: dict[str, Key], key_id: str) -> Key:
    if key_id not in keys:
        raise ConfigError(f"there is no API key {key_id!r}; `penstock keys list` shows them")
    return keys[key_id]


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _to_json(keys: Iterable[Key]) -> str:
    return json.dumps({"keys": [msgspec.to_builtins(key) for key in keys]}, indent=2) + "\n"


def _to_toml(keys: Iterable[Key]) -> str:
    lines = ["# API keys, written by `penstock keys`. Hashes only: the secrets were shown once."]
    for key in keys:
        fields: dict[str, object] = msgspec.to_builtins(key)
        lines += ["", "[[keys]]", *(f"{name} = {_toml(value)}" for name, value in fields.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's literals are TOML's, but for surrogate pairs and a bare DEL.
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("\x7f", r"\\u007f", text)
