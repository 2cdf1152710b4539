"""A backend that answers with what stands in a script: one of every kind of answer that an engine may give.

`--model mock=tests.support.scripted:Scripted`; a prompt with `[name]` in it plays the script of that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from penstock.backends.base import OPTIONAL_FIELDS, Backend, Embedded, Finish
from penstock.errors import BackendError, InvalidRequest
from penstock.fleet import Capabilities
from penstock.job import Job
from penstock.rich_token import Logprob, RichToken, Token, ToolCall

HALF = b"\xf0\x9f"

Step = Token | Finish | Exception | None  # None: wait until it is cancelled

SCRIPTS: dict[str, tuple[Step, ...]] = {
    "stop": ("Hi", " there", Finish("stop")),
    "length": ("Hi", " there", Finish("length")),
    "filter": ("Hi", Finish("content_filter")),
    "empty": (Finish("stop"),),
    "tools": (
        RichToken(reasoning="They want "),
        RichToken(reasoning="the weather."),
        RichToken(text="I look."),
        RichToken(tool_calls=(ToolCall(0, "c1", "weather", '{"at"'),)),
        RichToken(tool_calls=(ToolCall(0, arguments=':"sea"}'),)),
        RichToken(tool_calls=(ToolCall(1, "c2", "time"),)),
        Finish("tool_calls"),
    ),
    "thinking": (RichToken(reasoning="They"), Finish("length")),
    "call": (RichToken(tool_calls=(ToolCall(0, "c1", "weather", "{}"),)), Finish("tool_calls")),
    "cut": (
        RichToken(reasoning="They"),
        RichToken(tool_calls=(ToolCall(0, "c1", "weather", '{"at"'),)),
        Finish("length"),
    ),
    "logprobs": (
        RichToken("Hi", logprobs=(Logprob("Hi", -0.1, (("Hi", -0.1), ("Ho", -1.5))),)),
        RichToken("", logprobs=(Logprob("", -0.2, (("", -0.2), ("x", -3.0)), HALF, (HALF, None)),)),
        Finish("stop"),
    ),
    "fail": (BackendError("The engine failed."),),
    "invalid": (InvalidRequest("The engine refuses it.", param="messages"),),
    "fail later": ("Hi", BackendError("The engine failed.")),
    "invalid later": ("Hi", InvalidRequest("The engine refuses it.", param="messages")),
    "hang": ("Hi", None),
    "silence": (None,),
}


class Scripted(Backend):
    """It accepts every field, and gives embeddings of two numbers, whatever the inputs are."""

    capabilities = Capabilities(accepts=OPTIONAL_FIELDS, embeds=True)
    handles_stop = True

    async def stream(self, job: Job, *args: Any, **kwargs: Any) -> AsyncIterator[Token | Finish]:
        named = [script for name, script in SCRIPTS.items() if f"[{name}]" in job.text]
        for step in named[0] if named else SCRIPTS["stop"]:
            if isinstance(step, Exception):
                raise step
            if step is None:
                await asyncio.Event().wait()
            else:
                yield step

    async def embed(self, job: Job, inputs: Sequence[str]) -> Embedded:
        return Embedded([[0.5, -0.5]] * len(inputs))
