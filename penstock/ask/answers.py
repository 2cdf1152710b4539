"""The answers file of `penstock ask --file`: JSON lines, appended durably, so that a stopped run can go on.

Knows nothing of an answer's fields but `id`, `digest` and whether there is an `error`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from penstock.errors import ConfigError


class AnswerLog:
    """A context manager that holds the file for itself.

    Opening it repairs it: a last line that was cut off by a crash goes, and so do lines with an error, which are to be
    asked again. So at the end there is one line for each prompt. Raises `ConfigError` for a file that is something
    else, or that another run has open. A new file that nothing was appended to is removed again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: set[tuple[str, str]] = set()
        self._pending: list[bytes] = []
        self._writing = asyncio.Lock()
        self._disk = threading.Lock()  # a cancelled `append` leaves a thread behind that may still be writing
        self._file: IO[bytes]
        self._is_new = False

    def __enter__(self) -> Self:
        self._is_new = not self._path.exists()
        try:
            self._file = self._lock(self._path.open("a+b"))
        except OSError as error:
            raise ConfigError(f"{self._path}: the answers file cannot be used: {error.strerror or error}") from error
        try:
            self._repair()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self._is_new and not self._file.tell():  # there was nothing to write: leave no empty file behind
            self._path.unlink(missing_ok=True)
        self._file.close()

    def has(self, prompt_id: str, digest: str) -> bool:
        """Whether there was an answer when the file was opened."""
        return (prompt_id, digest) in self._done

    async def append(self, record: Mapping[str, Any]) -> None:
        """Returns when the line is on the disk. Lines that wait for the disk at the same time share one write."""
        self._pending.append(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        async with self._writing:
            if not self._pending:
                return
            try:
                await asyncio.to_thread(self._write)
            except OSError as error:
                raise ConfigError(f"{self._path}: cannot be written: {error.strerror or error}") from error

    def _write(self) -> None:
        with self._disk:
            lines, self._pending = self._pending, []
            if lines:
                self._file.write(b"".join(lines))
                self._file.flush()
                os.fsync(self._file.fileno())

    def _lock(self, file: IO[bytes]) -> IO[bytes]:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ConfigError(f"{self._path}: another run is writing to it") from error
        return file

    def _repair(self) -> None:
        """Read what is there; if any line must go, write a new file next to the old one and replace that."""
        self._file.seek(0)
        keep, is_whole = [], True
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                is_whole = False
                continue
            try:
                record = json.loads(line)
                key = (str(record["id"]), str(record["digest"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{self._path}: line {number} is not an answer record; choose another file with --out"
                ) from error
            if "error" in record:
                is_whole = False
                continue
            self._done.add(key)
            keep.append(line)
        if is_whole:
            return
        handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        fresh = self._lock(os.fdopen(handle, "w+b"))
        os.fchmod(handle, os.fstat(self._file.fileno()).st_mode & 0o777)
        fresh.writelines(keep)
        fresh.flush()
        os.fsync(handle)
        os.replace(temporary, self._path)
        self._file.close()
        self._file = fresh
