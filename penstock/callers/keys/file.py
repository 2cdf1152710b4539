"""A key, and the file of them: TOML or JSON, read strictly, replaced whole, with the owner and mode that it had."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from penstock.errors import ConfigError

MAX_SECRETS = 2  # the new one and the one that is being replaced
SUFFIXES = (".toml", ".json")

_HASH = r"^sha256:[0-9a-f]{64}$"


class Key(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One caller. `rpm` and `burst`: limits of its own, None for the configured ones, rpm 0 for none at all.

    `models`: the only models that it may use; None for all. `admin`: may cancel and look at other callers' requests.
    `metrics`: may read `/metrics`.
    """

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    hashes: Annotated[tuple[Annotated[str, Meta(pattern=_HASH)], ...], Meta(max_length=MAX_SECRETS)]
    name: Annotated[str, Meta(max_length=200)] = ""
    rpm: Annotated[int, Meta(ge=0, le=10**9)] | None = None
    burst: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    models: tuple[str, ...] | None = None
    admin: bool = False
    metrics: bool = False
    revoked: bool = False

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[Key, ...] = ()


def hash_secret(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """Raises `ConfigError` that names the fault and its place in the file, never with a hash in it."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin files with U+FEFF
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


def real(path: Path) -> Path:
    """The file that `path` leads to. Replacing a link would leave the file behind it with the keys before."""
    return Path(os.path.realpath(path))


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Replace the file at once. It keeps its owner and mode; a new one is its owner's alone. Its comments are lost.

    Raises `OSError`, and `ConfigError` where the file would not stay the one that gateways read.
    """
    target = real(path)
    if target.suffix in SUFFIXES and target.suffix != path.suffix:
        raise ConfigError(f"{path} leads to {target}: both must end in .toml, or both in .json")
    text = _to_json(keys) if path.suffix == ".json" else _to_toml(keys)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            _keep_owner_and_mode(target, temporary)
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _keep_owner_and_mode(target: Path, temporary: str) -> None:
    """Let a gateway of another user read the new file if it could read the old one."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return
    if old.st_nlink > 1:
        raise ConfigError(
            f"{target} has {old.st_nlink} names (hard links), and the others would keep the keys before; remove them"
        )
    try:
        os.chown(temporary, old.st_uid, old.st_gid)
    except PermissionError:
        raise ConfigError(
            f"{target} belongs to user {old.st_uid} and group {old.st_gid}, and only they may replace it so that "
            "gateways can still read it; run this as that user, or as root"
        ) from None
    shutil.copystat(target, temporary)  # the mode, and access lists where there are any
    os.utime(temporary)


def exposure(path: Path) -> str:
    """One sentence on who else can write or read the file; empty if only its owner can, and its group can read."""
    try:
        mode, folder = os.stat(path).st_mode, os.stat(real(path).parent).st_mode
    except OSError:
        return ""  # `read_keys` reports it
    shown = f"{stat.S_IMODE(mode):04o}"
    if mode & 0o022:
        return (
            f"{path}: others than its owner may write this file of API keys (mode {shown}), and so make keys; chmod 640"
        )
    if folder & 0o002 and not folder & stat.S_ISVTX:
        return f"{real(path).parent}: every user may replace the file of API keys in this folder; chmod o-w"
    if mode & 0o004:
        return f"{path}: every user of this machine may read this file of API keys (mode {shown}); chmod 640"
    return ""


def _to_json(keys: Iterable[Key]) -> str:
    return json.dumps({"keys": [msgspec.to_builtins(key) for key in keys]}, indent=2) + "\n"


def _to_toml(keys: Iterable[Key]) -> str:
    lines = ["# API keys, written by `penstock keys`. Hashes only: the secrets were shown once."]
    for key in keys:
        fields: dict[str, object] = msgspec.to_builtins(key)
        lines += ["", "[[keys]]", *(f"{name} = {_toml(value)}" for name, value in fields.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's literals are valid TOML, except surrogate pairs and a bare DEL.
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("\x7f", r"\\u007f", text)
