"""The keys that are in force in a gateway: read again when their file changes.

A revocation is a change of the file, so a file that cannot be read is tried again each second and reported: until it
can be read, the keys read before stay in force and a revoked one among them still works.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from penstock.callers.keys.file import MAX_SECRETS, Key, exposure, hash_secret, read_keys
from penstock.errors import ConfigError

CHECK_INTERVAL_S = 1.0
REPORT_EVERY_S = 60.0

_NOBODY = "sha256:" + "0" * 64  # compared against where there is no hash, so that an unknown id costs the same

_log = logging.getLogger("penstock.callers.keys")

Signature = tuple[int, ...]


class KeyRing:
    """The keys of a file, read again when it changes (looked at once a second at most).

    A file that is broken at the start is a `ConfigError`. `trouble` is the error of one that breaks later, and
    `stale_s` for how long it has been broken; both are logged at once and each minute. `clock` is monotonic seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.trouble = ""
        self.exposure = ""
        self._clock = clock
        self._stale_since: float | None = None
        self._reported_at = 0.0
        self._keys: dict[str, Key] = {}
        self._seen: Signature | None = None
        self._look()
        self._look_at = clock() + CHECK_INTERVAL_S

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def stale_s(self) -> float:
        """For how long the file could not be read; 0 while the keys in force are those of the file."""
        return 0.0 if self._stale_since is None else self._clock() - self._stale_since

    def verify(self, token: str) -> Key | None:
        """The key whose text `token` is, or None: unknown, wrong or revoked. Takes as long for each of these."""
        self.refresh()
        key_id, _, secret = token.partition(".")
        key = self._keys.get(key_id)
        given = hash_secret(secret)
        hashes = (key.hashes if key else ()) + (_NOBODY,) * MAX_SECRETS
        matches = [hmac.compare_digest(given, known) for known in hashes[:MAX_SECRETS]]
        return key if key and any(matches) and not key.revoked else None

    def is_live(self, key_id: str) -> bool:
        """The key is there and not revoked, as the file was last read."""
        key = self._keys.get(key_id)
        return key is not None and not key.revoked

    def refresh(self) -> None:
        """Look at the file, if the last look is a second ago. Never raises: see `trouble`."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + CHECK_INTERVAL_S
        try:
            if not self._look():
                raise ConfigError(
                    f"{self.path}: this file has been replaced or deleted where it comes from, and this process still "
                    "sees the old one; a mount of one file does that: mount its folder"
                )
        except ConfigError as error:
            self._report(now, error.message)
            return
        if self._stale_since is not None:
            _log.info("the API keys file can be read again, after %.0f s", now - self._stale_since)
            self.trouble, self._stale_since = "", None

    def _look(self) -> int:
        """Read the file if it is not the one that was read last; the number of its names.

        `_seen` is set after a good read, and only then: what could not be read is tried again.
        """
        signature, num_names = _signature(self.path)
        if signature != self._seen:
            keys = {key.id: key for key in read_keys(self.path)}
            if self._seen is not None:
                _log.info("read %d API keys again", len(keys))
            self._keys, self._seen = keys, signature
            self.exposure = exposure(self.path)
            if self.exposure:
                _log.warning("%s", self.exposure)
        return num_names

    def _report(self, now: float, trouble: str) -> None:
        is_new = self._stale_since is None or trouble != self.trouble
        self.trouble = trouble
        if self._stale_since is None:
            self._stale_since = now
        if is_new or now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            _log.error(
                "the API keys read before stay in force, revoked ones too, for %.0f s now: %s",
                now - self._stale_since,
                trouble,
            )


def _signature(path: Path) -> tuple[Signature, int]:
    """A signature that changes with the file, and the number of its names."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{path}: the API keys file cannot be read: {error.strerror}") from error
    # The time of change covers what keeps the time of modification: a new mode, or a copy with its old times.
    return (stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev), stat.st_nlink
