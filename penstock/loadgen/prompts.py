"""Prompts from a file, or invented ones of a given length. Knows the body of each API, and no network."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock.loadgen.plan import API, Prepared

NUM_SYNTHETIC = 512

# Short and common: one token each, with the space before it, in the vocabularies that are in use.
_WORDS: list[str] = re.findall(
    r"\w+",
    """
    the of and to in is it for on as with at by from this that be are was or an have not but they you we can all
    one time day way man year work life part place case point home water room fact night book eye job word side
    kind head house service friend father power hour game line end member law car city name team minute idea body
    back level door
    """,
)


def synthetic(
    api: API, *, input_tokens: int, output_tokens: int, is_stream: bool, seed: int, extra: Mapping[str, Any]
) -> list[Prepared]:
    """Different prompts of about `input_tokens` tokens each (one word counts as one), asking for `output_tokens`."""
    chance = random.Random(seed)
    found = []
    for _ in range(NUM_SYNTHETIC):
        prompt = " ".join(chance.choices(_WORDS, k=input_tokens))
        found.append(_prepare(api, {"prompt": prompt, "max_tokens": output_tokens, **extra}, is_stream))
    return found


def from_file(api: API, path: Path, *, output_tokens: int, is_stream: bool, extra: Mapping[str, Any]) -> list[Prepared]:
    """The prompts of a JSONL file, as `penstock ask --file` reads it. Raises `ConfigError` that names the line."""
    from penstock.ask.file import PromptFile  # with an HTTP client, which a process of load does without

    defaults = {"max_tokens": output_tokens, **extra}
    found = [_prepare(api, prompt.body, is_stream) for prompt in PromptFile(path, defaults)]
    if not found:
        raise ConfigError(f"{path}: it contains no prompts")
    return found


def _prepare(api: API, body: Mapping[str, Any], is_stream: bool) -> Prepared:
    data = dict(body)
    if api == "chat" and "prompt" in data:
        data = {"messages": [{"role": "user", "content": data.pop("prompt")}], **data}
    if api == "completions" and "messages" in data:
        raise ConfigError("--api completions takes prompts, not messages; use --api chat")
    if is_stream:
        data["stream"] = True
        if api != "generate":
            data["stream_options"] = {"include_usage": True}
    max_tokens = data["max_tokens"]
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise ConfigError(f"max_tokens: {max_tokens!r} is not a whole number of at least 1")
    return Prepared(json.dumps(data, ensure_ascii=False, separators=(",", ":")), max_tokens)
