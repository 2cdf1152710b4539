"""Ask a file of prompts, many at a time. A run that was stopped can be resumed and repeats no answered prompt."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from penstock.ask.answers import AnswerLog
from penstock.ask.asker import Asker, AskOutcome
from penstock.client import Options
from penstock.errors import ConfigError

# The fields that a line may set: all options of a request except those that concern its connection.
FIELDS = frozenset(Options.__annotations__) - {"idempotency_key", "on_disconnect", "queue_events"}


@dataclass(frozen=True)
class Prompt:
    """One line of a prompts file. `digest` changes when anything that the server is asked changes."""

    id: str
    body: Mapping[str, Any]

    @property
    def digest(self) -> str:
        text = json.dumps(self.body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Summary:
    """The result of a run. `num_before`: how many prompts an earlier run had answered."""

    num_before: int
    num_answered: int
    num_failed: int


class PromptFile:
    """The prompts of a file, one JSON object a line; `defaults` for the fields that a line leaves out.

    Each iteration begins at the first line. `-` is stdin, which can be read only once and is kept in memory. A prompt
    without an id gets one from what it asks. An iteration raises `ConfigError` that names the line.
    """

    def __init__(self, path: Path, defaults: Mapping[str, Any]) -> None:
        self._path = path
        self._defaults = defaults
        self._stdin: bytes | None = None
        self._name = "stdin" if self._is_stdin else str(path)

    @property
    def _is_stdin(self) -> bool:
        return self._path == Path("-")

    def __iter__(self) -> Iterator[Prompt]:
        seen: set[str] = set()
        try:
            with self._open() as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield self._read(number, line, seen)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._name}: the prompts file cannot be read: {error}") from error

    def _open(self) -> IO[str]:
        if self._is_stdin and self._stdin is None:
            self._stdin = sys.stdin.buffer.read()
        file = self._path.open("rb") if self._stdin is None else io.BytesIO(self._stdin)
        return io.TextIOWrapper(file, encoding="utf-8-sig")  # editors on Windows write a byte order mark

    def _read(self, number: int, line: str, seen: set[str]) -> Prompt:
        """`seen`: the ids of the lines before; this one's is added."""
        try:
            prompt = _prompt(line, self._defaults)
        except ValueError as error:
            raise ConfigError(f"{self._name}: line {number}: {error}") from error
        count, name = 1, prompt.id
        while not name or name in seen:
            if prompt.id:
                raise ConfigError(f"{self._name}: line {number}: the id {name!r} is there twice")
            name = prompt.digest[:16] + (f"-{count}" if count > 1 else "")
            count += 1
        seen.add(name)
        return Prompt(name, prompt.body)


async def ask_file(
    asker: Asker,
    path: Path,
    out: Path,
    *,
    concurrency: int,
    defaults: Mapping[str, Any],
    on_start: Callable[[int, int], None] = lambda total, before: None,
    on_text: Callable[[str], None] = lambda text: None,
    on_outcome: Callable[[Prompt, AskOutcome], None] = lambda prompt, outcome: None,
) -> Summary:
    """Ask every prompt that `out` has no answer to yet, and append a line for each as it ends.

    `on_start` gets how many there are and how many were answered before, `on_text` each token as it comes. Cancelling
    is safe at any time. Raises `ConfigError` for files that cannot be used, before anything is asked.
    """
    prompts = PromptFile(path, defaults)
    with AnswerLog(out) as log:
        total, before = 0, 0
        for prompt in prompts:
            total += 1
            before += log.has(prompt.id, prompt.digest)
        on_start(total, before)
        waiting = (prompt for prompt in prompts if not log.has(prompt.id, prompt.digest))
        counts = {True: 0, False: 0}

        async def work() -> None:
            for prompt in waiting:
                outcome = await asker.ask(prompt.body, on_text)
                await log.append({"id": prompt.id, "digest": prompt.digest, **outcome.record()})
                counts[outcome.error is None] += 1
                on_outcome(prompt, outcome)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, total - before)):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    return Summary(before, counts[True], counts[False])


def _prompt(line: str, defaults: Mapping[str, Any]) -> Prompt:
    form = 'each line must be a JSON object with either "prompt" or "messages", such as {"prompt": "…"}'
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{form}; this one is not JSON ({error})") from error
    if not isinstance(data, dict) or ("prompt" in data) == ("messages" in data):
        raise ValueError(form)
    if not isinstance(data.get("prompt", ""), str):
        raise ValueError("'prompt' must be text")
    if not isinstance(data.get("messages", []), list):
        raise ValueError("'messages' must be a list")
    if strange := sorted(set(data) - {"id", "prompt", "messages", *FIELDS}):
        raise ValueError(f"unknown field {', '.join(strange)}")
    prompt_id = data.pop("id", "")
    if not isinstance(prompt_id, str | int) or isinstance(prompt_id, bool):
        raise ValueError("an id is text or a whole number")
    return Prompt(str(prompt_id), {**defaults, **data})
