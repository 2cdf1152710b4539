"""From a job to the body of an upstream's request: POST /chat/completions or /completions. Pure.

Field names and forms are those of OpenAI's API reference; an engine's own spelling comes from `engines`. One answer
is asked for, always streamed. `InvalidRequest` for what the route has no field for: nothing is left out. Extras stand
in the body as they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from penstock.backends.openai.engines import Engine, Resume, Unlimited
from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.extras import GRAMMARS, REASONING, TEMPLATE
from penstock.job import OPTIONAL_FIELDS, Job, Message, Sampling
from penstock.rich_token import Token, join_text

CHAT, COMPLETIONS = "/chat/completions", "/completions"

Api = Literal["both", "chat", "completions"]
# Whether an engine gets the reasoning of earlier answers: as it is known to want it, always, or never.
ReasoningHistory = Literal["engine", "yes", "no"]

_CHAT_ONLY = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort")
_CHAT_EXTRAS = (*TEMPLATE, *REASONING, "bad_words")
_PLAIN = tuple(name for name in OPTIONAL_FIELDS if name not in ("logprobs", "stop", "tools"))
# What an engine that cannot be asked without a limit is asked for, where the client names none: more may not fit into
# its context, and would be refused.
MAX_UNASKED = 1024


_IN_TEMPLATE = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, slots=True)
class RequestShape:
    """How to ask the upstreams of one model. `asks_usage`: whether to send `stream_options.include_usage`."""

    api: Api = "both"
    asks_usage: bool = True
    resumes: frozenset[Resume] = frozenset()
    fetches: bool = False  # whether the engine may be asked to fetch images
    reasoning_history: ReasoningHistory = "engine"


def can_continue(job: Job, tokens: Iterable[Token], shape: RequestShape) -> bool:
    """Whether a new request to the engine can continue an answer that has `tokens` already.

    An engine can continue text only, and not behind token ids: it would begin reasoning and tool calls anew. It would
    also apply a grammar (`response_format`, and some extras) from its beginning, in the middle of the text.
    """
    kind: Resume = "messages" if job.prompt is None or shape.api == "chat" else "prompt"
    if kind not in shape.resumes or job.sampling.response_format is not None or job.has_token_ids:
        return False
    if not job.sampling.extras.keys().isdisjoint(GRAMMARS):
        return False
    return all(isinstance(token, str) or not (token.reasoning or token.tool_calls) for token in tokens)


def build(job: Job, tokens: Sequence[Token], model: str, engine: Engine, shape: RequestShape) -> tuple[str, bytes]:
    """Path and JSON body. `tokens` were delivered already. Raises `InvalidRequest` if the upstream cannot do it."""
    is_chat = job.prompt is None or shape.api == "chat" or (shape.api == "both" and not engine.has_completions)
    if is_chat and isinstance(job.prompt, tuple):
        raise UnsupportedParameter("This model's upstream takes text, not token ids.", param="prompt")
    if is_chat and shape.api == "completions":
        raise InvalidRequest("This model's upstream takes a prompt, not a conversation.", param="messages")
    if not shape.fetches and any(message.fetches for message in job.messages or ()):
        raise UnsupportedParameter("This model's upstream does not fetch images.", param="messages")
    # First, so that none of them replaces what is set here.
    body = _extras(job.sampling.extras, engine, is_chat, len(tokens)) | {"model": model}
    if is_chat:
        body["messages"] = _messages(job, tokens, _reasoning_names(engine, shape))
        if tokens:  # vLLM's and SGLang's: go on with the last message instead of answering it
            body |= {"add_generation_prompt": False, "continue_final_message": True}
    else:
        body["prompt"] = job.prompt + join_text(tokens) if isinstance(job.prompt, str) else list(job.prompt or ())
    body |= {"n": 1, "stream": True}
    if shape.asks_usage:
        body["stream_options"] = {"include_usage": True}
    limit = _limit(job.sampling, len(tokens), engine.chat_unlimited if is_chat else engine.prompt_unlimited)
    if limit != "left_out":
        body[engine.names.get("max_tokens", "max_tokens") if is_chat else "max_tokens"] = limit
    body |= _sampling(job.sampling, engine, is_chat)
    if job.user:
        body["user"] = job.user
    return CHAT if is_chat else COMPLETIONS, msgspec.json.encode(body)


def _extras(extras: Mapping[str, Any], engine: Engine, is_chat: bool, num_before: int) -> dict[str, Any]:
    """`num_before`: tokens that were delivered already."""
    if not is_chat:
        for name in _CHAT_EXTRAS:
            if name in extras:
                raise _needs_conversation(name)
    fields = {name: value for name, value in extras.items() if name not in engine.in_template}
    if inside := {name: value for name, value in extras.items() if name in engine.in_template}:
        fields["chat_template_kwargs"] = inside | fields.get("chat_template_kwargs", {})
    if num_before and type(fields.get("min_tokens")) is int:
        fields["min_tokens"] = max(0, fields["min_tokens"] - num_before)
    return fields


def _needs_conversation(name: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{name!r} needs a conversation, not a prompt.", param=name)


def _limit(sampling: Sampling, num_before: int, unlimited: Unlimited) -> int | Literal["left_out"] | None:
    """The `max_tokens` to ask for: at least what is left, as a token may have been more than one of the engine's."""
    if sampling.max_tokens_given:
        return max(1, sampling.max_tokens - num_before)
    if unlimited == "never":
        return max(1, min(sampling.max_tokens, MAX_UNASKED) - num_before)
    return None if unlimited == "null" else "left_out"


def conversation(job: Job, engine: Engine, shape: RequestShape) -> dict[str, Any]:
    """The fields of a chat about `job` that make its prompt."""
    extras = _extras(job.sampling.extras, engine, is_chat=True, num_before=0)
    if "documents" in extras:
        raise UnsupportedParameter("The tokens of 'documents' cannot be counted.", param="documents")
    fields: dict[str, Any] = {"messages": _messages(job, (), _reasoning_names(engine, shape))}
    if job.sampling.tools:
        fields["tools"] = list(job.sampling.tools)
    return fields | {name: extras[name] for name in _IN_TEMPLATE if name in extras}


def _sampling(sampling: Sampling, engine: Engine, is_chat: bool) -> dict[str, Any]:
    if not is_chat:
        for name in _CHAT_ONLY:
            if getattr(sampling, name) not in (None, ()):
                raise _needs_conversation(name)
    fields = {engine.names.get(name, name): value for name in _PLAIN if (value := getattr(sampling, name)) is not None}
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.tools:
        fields["tools"] = list(sampling.tools)
    if sampling.logprobs is not None:
        if is_chat:
            fields["logprobs"] = True
            if sampling.logprobs:
                fields["top_logprobs"] = sampling.logprobs
        else:
            fields["logprobs"] = sampling.logprobs
    return fields


def _reasoning_names(engine: Engine, shape: RequestShape) -> tuple[str, ...]:
    if shape.reasoning_history == "no":
        return ()
    return engine.reasoning or (("reasoning_content",) if shape.reasoning_history == "yes" else ())


def _messages(job: Job, tokens: Sequence[Token], names: tuple[str, ...]) -> list[dict[str, Any]]:
    if job.messages is None:
        turns: list[dict[str, Any]] = [{"role": "user", "content": job.prompt}]
    else:
        turns = [_message(message, names) for message in job.messages]
    if not tokens:
        return turns
    text = join_text(tokens)
    if job.sampling.extras.get("continue_final_message") is True and turns[-1]["role"] == "assistant":
        turns[-1]["content"] = (turns[-1]["content"] or "") + text  # the client began this answer itself
    else:
        turns.append({"role": "assistant", "content": text})
    return turns


def _message(message: Message, names: tuple[str, ...]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": list(message.parts) or message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        turn["content"] = turn["content"] or None
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name:
        turn["name"] = message.name
    if message.reasoning:
        turn |= dict.fromkeys(names, message.reasoning)
    return turn
