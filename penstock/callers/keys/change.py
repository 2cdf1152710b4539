"""The changes of `penstock keys` to the file: create, rotate, retire, revoke. A lock separates two commands."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from penstock.callers.keys.file import MAX_SECRETS, SUFFIXES, Key, hash_secret, read_keys, real, write_keys
from penstock.errors import ConfigError


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
    metrics: bool = False,
) -> tuple[Key, str]:
    """Add a key to the file, which is made if need be; the key and its text, which is shown this once."""
    secret = new_secret()
    fields = {
        "rpm": rpm,
        "burst": burst,
        "models": None if models is None else tuple(models),
        "admin": admin,
        "metrics": metrics,
    }
    with _edit(path, missing_ok=True) as keys:
        while (key_id := "pk_" + secrets.token_hex(6)) in keys:
            pass
        keys[key_id] = key = Key(id=key_id, hashes=(hash_secret(secret),), name=name, **fields)  # type: ignore[arg-type]  # of one dict
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


@contextmanager
def _edit(path: Path, *, missing_ok: bool = False) -> Iterator[dict[str, Key]]:
    """The keys by id, written back at the end. The lock is on the folder, as the file itself is replaced."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: an API keys file ends in .toml or .json")
    parent = real(path).parent
    try:
        folder = os.open(parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{parent}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = {} if missing_ok and not path.exists() else {key.id: key for key in read_keys(path)}
        yield keys
        try:
            write_keys(path, keys.values())
            os.fsync(folder)  # else a loss of power may bring the file before it back, and with it a revoked key
        except OSError as error:
            raise ConfigError(f"{path}: the API keys file cannot be written: {error.strerror}") from error
    finally:
        os.close(folder)


def _find(keys: dict[str, Key], key_id: str) -> Key:
    if key_id not in keys:
        raise ConfigError(f"no such API key: {key_id!r}; `penstock keys list` shows them")
    return keys[key_id]
