"""`POST /v1/messages/count_tokens`: its body to a `Draft`, its answer. Pure.

Form: https://docs.anthropic.com/en/api/messages-count-tokens.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from penstock.api.anthropic.body import MessagesBody, draft_of
from penstock.api.intake import Draft
from penstock.http.openapi import AnswerModel
from penstock.tasks import COUNT

# What an engine puts into the prompt, or chooses it by.
_IN_PROMPT = ("tools", "tool_choice", "parallel_tool_calls", "response_format")


class CountBody(MessagesBody):
    """A conversation whose tokens are to be counted: the fields of a message to be made.

    Those that are not part of the prompt, such as `max_tokens`, are without effect.
    """

    max_tokens: int = Field(1, ge=1)


class CountAnswer(AnswerModel):
    """The number of tokens of the prompt: system, conversation and tools."""

    input_tokens: int


def count_draft_of(body: CountBody) -> Draft:
    """The request to count the prompt of the message that `body` asks for. Raises as `draft_of`."""
    draft = draft_of(body)
    shown = {name: draft.sampling[name] for name in _IN_PROMPT}
    return replace(draft, task=COUNT, max_tokens=None, sampling=shown, stream=False)
