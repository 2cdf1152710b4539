"""The mock's tool calls: which of the offered tools, with which arguments, in which tokens.

It calls the tools that the last message of the user names, or else the first two, at once; one alone where
`parallel_tool_calls` is false. To a tool's answer it replies in words, unless `tool_choice` demands a call: then it
calls tools that this turn has not called yet, so that an agent which always demands one comes to its last.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from penstock.backends.mock.schema.keywords import shown
from penstock.backends.mock.schema.values import value_for
from penstock.backends.mock.script import asked_of
from penstock.job import Job
from penstock.rich_token import RichToken, Token, ToolCall

MAX_CALLS = 4
UNNAMED_CALLS = 2
ARGUMENT_LENGTH = 6  # characters of the arguments in a token
_READ = 4096  # characters of the user's message in which names are looked for
_NAME = re.compile(r"[\w-]+")


def is_demanded(job: Job) -> bool:
    """Whether `tool_choice` asks for a call."""
    choice = job.sampling.tool_choice
    return bool(job.sampling.tools) and (choice == "required" or isinstance(choice, dict))


def calls_of(job: Job, key: int) -> list[Token]:
    """The tokens of the calls that are due, a fragment each; none where the job is to be answered in words.

    Raises `Unwritable` for parameters to which no arguments are found.
    """
    is_answered = job.messages is not None and job.messages[-1].role == "tool"
    if job.sampling.tool_choice == "none" or (is_answered and not is_demanded(job)):
        return []
    tokens: list[Token] = []
    for index, function in enumerate(_chosen(job)):
        tokens += _call(index, function, key)
    return tokens


def _chosen(job: Job) -> list[dict[str, Any]]:
    functions = [tool["function"] for tool in job.sampling.tools if isinstance(tool.get("function"), dict)]
    choice = job.sampling.tool_choice
    if isinstance(choice, dict):
        return [each for each in functions if each.get("name") == choice.get("function", {}).get("name")][:1]
    called = set(_called(job))
    fresh = [each for each in functions if each.get("name") not in called] or functions
    words = set(_NAME.findall(asked_of(job)[:_READ]))
    named = [each for each in fresh if each.get("name") in words]
    chosen = named[:MAX_CALLS] or fresh[:UNNAMED_CALLS]
    return chosen[:1] if job.sampling.parallel_tool_calls is False else chosen


def _called(job: Job) -> Iterator[str]:
    """The names of the tools that were called since the user's last message."""
    for message in reversed(job.messages or ()):
        if message.role == "user":
            return
        yield from (call.name for call in message.tool_calls)


def _call(index: int, function: dict[str, Any], key: int) -> list[Token]:
    name = str(function.get("name", ""))
    own = hashlib.blake2b(f"{key} {index} {name}".encode("utf-8", "surrogatepass"), digest_size=8)
    arguments = shown(_arguments(function.get("parameters"), int.from_bytes(own.digest(), "big")))
    head = RichToken(tool_calls=(ToolCall(index, f"call_{own.hexdigest()}", name),))
    parts = [arguments[at : at + ARGUMENT_LENGTH] for at in range(0, len(arguments), ARGUMENT_LENGTH)]
    return [head, *(RichToken(tool_calls=(ToolCall(index, arguments=part),)) for part in parts)]


def _arguments(parameters: Any, key: int) -> Any:
    """An object that is valid against the function's parameters; an empty one where it has none."""
    if not parameters:
        return {}
    return value_for({"type": "object", **parameters} if isinstance(parameters, dict) else parameters, key)
