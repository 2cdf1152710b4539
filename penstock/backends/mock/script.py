"""What a prompt may tell the mock to do: `[[…]]` in the prompt, or in the last message of the user.

Words, at every mock:

    [[say TEXT]]                        the answer is TEXT, and ends; TEXT may hold `[[…]]` itself
    [[echo]]                            the answer is the last message, without this marker

Failures, with `scripted=true`, for tests (a plain mock takes them as text):

    [[fail]]        [[fail_after=N]]    that job fails with `backend_error`, before any token or after N
    [[hang]]        [[hang_after=N]]    the engine stops for its whole batch, forever; the event loop runs
    [[block_after=N]]                   the engine blocks the event loop of its process, forever
    [[crash]]       [[crash_after=N]]   the process kills itself with SIGKILL
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from penstock.job import Job

MAX_TEXT: Final = 64 * 1024  # characters that may be dictated

_TRIGGER: Final = re.compile(r"\[\[(fail|hang|block|crash)(?:_after=(\d{1,6}))?\]\]")
_WORDS: Final = re.compile(r"\[\[(?:echo\]\]|say\s)")
_BRACKET: Final = re.compile(r"[\[\]]")
_BRACKETS: Final = re.compile(r"\[\[|\]\]")
_TOKEN: Final = re.compile(r"\s*\S{1,12}|\s+")


def trigger_of(job: Job) -> tuple[str, int] | None:
    """The failure that the job asks for, and the number of tokens before it."""
    match = _TRIGGER.search(job.text)
    return None if match is None else (match[1], int(match[2] or 0))


def words_of(job: Job) -> str | None:
    """The text that the job asks for word by word; None where it leaves the words to the mock."""
    asked = asked_of(job)
    match = _WORDS.search(asked)
    if match is None:
        return None
    if match[0] != "[[echo]]":
        return _said(asked, match.end())
    last = job.messages[-1].content if job.messages else asked
    return last.replace("[[echo]]", "").strip()


def asked_of(job: Job) -> str:
    """The prompt, or the last message of the user."""
    if job.messages is None:
        return job.prompt if isinstance(job.prompt, str) else ""
    return next((message.content for message in reversed(job.messages) if message.role == "user"), "")


def _said(asked: str, start: int) -> str | None:
    """The text from `start` to the brackets that end it; None if nothing does."""
    end = _balanced(asked, start, _BRACKET, 2)
    if end is not None and asked[end - 1] == "]":  # as in JSON
        return asked[start : end - 1]
    end = _balanced(asked, start, _BRACKETS, 1)  # its single brackets are not in pairs
    if end is None:
        return None
    while asked.startswith("]", end + 2):
        end += 1
    return asked[start:end]


def _balanced(asked: str, start: int, bracket: re.Pattern[str], depth: int) -> int | None:
    """Where the bracket is that closes the last of `depth` open ones."""
    for match in bracket.finditer(asked, start, start + MAX_TEXT):
        depth += 1 if match[0][0] == "[" else -1
        if depth == 0:
            return match.start()
    return None


def tokens_of(text: str) -> Iterator[str]:
    """`text` in tokens: words with the white space in front of them, long ones in parts."""
    return (match[0] for match in _TOKEN.finditer(text))
