"""How the engines behind the one API differ: which fields they honour, and their names for them. Pure.

A field that an engine would silently ignore is not in its list, so that the gateway refuses it with 400. A field that
depends on how the engine was launched (tools, images) is: the engine's own 400 is passed on. From the engines' own
documentation and request schemas; docs/backends.md lists the versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Resume = Literal["prompt", "messages"]
EngineName = Literal["any", "vllm", "sglang", "llamacpp", "ollama", "tgi", "openai"]

_EVERY = ("temperature", "top_p", "stop")
_USUAL = (*_EVERY, "seed", "presence_penalty", "frequency_penalty")
_ALL = (
    *_USUAL,
    *("top_k", "min_p", "repetition_penalty", "logit_bias", "logprobs"),
    *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "images"),
)


_PROMPT: frozenset[Resume] = frozenset(("prompt",))


@dataclass(frozen=True, slots=True)
class Engine:
    """`accepts`: fields of `Sampling`, "images" (in the request itself) and "image_urls" (that the engine fetches: only
    for engines outside our network). `names`: the engine's own spelling of a field.

    `vision`: a path at the server's root whose JSON has `modalities.vision`, where images depend on the model loaded.

    `reasoning`: what it calls the reasoning of an earlier answer in its messages; () where it has no field for it.

    `health`: a path at the server's root that answers 2xx when the engine can work, "" where there is none.
    `has_completions`: whether there is /completions; without it a prompt is sent as a user's message. `continues`: what
    it can go on from in the middle of an answer. Ollama puts a prompt into the model's template too, so not that.
    """

    accepts: tuple[str, ...] = _EVERY
    names: Mapping[str, str] = field(default_factory=dict)
    reasoning: tuple[str, ...] = ()
    vision: str = ""
    health: str = ""
    has_completions: bool = True
    continues: frozenset[Resume] = frozenset(("prompt", "messages"))


ENGINES: dict[EngineName, Engine] = {
    "any": Engine(),
    "vllm": Engine(_ALL, reasoning=("reasoning", "reasoning_content"), health="/health"),
    "sglang": Engine(_ALL, reasoning=("reasoning_content",), health="/health"),
    "llamacpp": Engine(
        tuple(name for name in _ALL if name not in ("reasoning_effort", "images")),
        {"repetition_penalty": "repeat_penalty"},
        ("reasoning_content",),
        vision="/props",
        health="/health",
        continues=_PROMPT,
    ),
    "ollama": Engine(
        (*_USUAL, "response_format", "tools", "images", "reasoning_effort"),
        health="/api/version",
        continues=frozenset(),
    ),
    "tgi": Engine(
        (*_USUAL, "logprobs", "tools", "tool_choice", "response_format", "images"),
        health="/health",
        continues=_PROMPT,
    ),
    "openai": Engine(
        (*(name for name in _ALL if name not in ("top_k", "min_p", "repetition_penalty")), "image_urls"),
        {"max_tokens": "max_completion_tokens"},
        has_completions=False,
        continues=frozenset(),
    ),
}
