"""A file of prompts, asked side by side, that can be stopped and resumed without repeating what is done."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.ask.answers import AnswerLog
from penstock.ask.asker import Asker, AskOutcome
from penstock.client import Options
from penstock.errors import ConfigError

# What a line may set: all but what concerns the connection that it is asked over.
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
    """How a file went. `num_before` were answered by an earlier run."""

    num_before: int
    num_answered: int
    num_failed: int


def read_prompts(path: Path, defaults: Mapping[str, Any]) -> Iterator[Prompt]:
    """The prompts of a file, one JSON object a line; `defaults` for the fields that a line leaves out.

    A prompt without an id gets one from what it asks. Raises `ConfigError` that names the line.
    """
    seen: set[str] = set()
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    prompt = _prompt(line, defaults)
                except ValueError as error:
                    raise ConfigError(f"{path}: line {number}: {error}") from error
                count, name = 1, prompt.id
                while not name or name in seen:
                    if prompt.id:
                        raise ConfigError(f"{path}: line {number}: the id {name!r} is there twice")
                    name = prompt.digest[:16] + (f"-{count}" if count > 1 else "")
                    count += 1
                seen.add(name)
                yield Prompt(name, prompt.body)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the prompts file cannot be read: {error}") from error


async def ask_file(
    asker: Asker,
    path: Path,
    out: Path,
    *,
    concurrency: int,
    defaults: Mapping[str, Any],
    on_start: Callable[[int, int], None] = lambda total, before: None,
    on_outcome: Callable[[Prompt, AskOutcome], None] = lambda prompt, outcome: None,
) -> Summary:
    """Ask every prompt that `out` has no answer to yet, and append a line for each as it ends.

    `on_start` gets how many there are and how many were answered before. Cancelling is safe at any time. Raises
    `ConfigError` for files that cannot be used, before anything is asked.
    """
    with AnswerLog(out) as log:
        total, before = 0, 0
        for prompt in read_prompts(path, defaults):
            total += 1
            before += log.has(prompt.id, prompt.digest)
        on_start(total, before)
        waiting = (prompt for prompt in read_prompts(path, defaults) if not log.has(prompt.id, prompt.digest))
        counts = {True: 0, False: 0}

        async def work() -> None:
            for prompt in waiting:
                outcome = await asker.ask(prompt.body)
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
    data = json.loads(line)
    if not isinstance(data, dict) or ("prompt" in data) == ("messages" in data):
        raise ValueError('a JSON object with either "prompt" or "messages" is needed')
    if strange := sorted(set(data) - {"id", "prompt", "messages", *FIELDS}):
        raise ValueError(f"unknown field {', '.join(strange)}")
    prompt_id = data.pop("id", "")
    if not isinstance(prompt_id, str | int) or isinstance(prompt_id, bool):
        raise ValueError("an id is text or a whole number")
    return Prompt(str(prompt_id), {**defaults, **data})
