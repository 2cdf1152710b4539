"""The options of a request, once for both shells, and its body. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from penstock.client.core import SLACK_S, OnRetry, Policy
from penstock.client.route import DEFAULT_URL, Route
from penstock.errors import ConfigError, InvalidRequest
from penstock.job import OnDisconnect

MessageLike = Mapping[str, Any]


class Options(TypedDict, total=False):
    """Fields of `POST /v1/generate` (docs/api.md); what is absent or None is the server's default.

    `timeout_s` is the request's deadline at the server, queueing included. `on_disconnect` is `resume` by
    default. `idempotency_key` is made up unless given: the same key twice is one request. `extras`: fields of the
    model's engine by name, such as `{"ignore_eos": True}`.
    """

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[str, float] | None
    logprobs: bool | None
    top_logprobs: int | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    response_format: Mapping[str, Any] | None
    reasoning_effort: str | None
    metadata: Mapping[str, str] | None
    user: str | None
    timeout_s: float | None
    on_disconnect: OnDisconnect | None
    queue_events: bool | None
    idempotency_key: str | None
    extras: Mapping[str, Any] | None


_OWN = {*Options.__annotations__, "prompt", "messages", "stream", "background"}


def body_of(
    prompt: str | None, messages: Sequence[MessageLike] | None, options: Options, *, background: bool = False
) -> dict[str, Any]:
    """The JSON body.

    Raises `InvalidRequest` unless exactly one of `prompt` and `messages` is given, the latter as a list, and
    `TypeError` for an unknown option, and for an extra that is an option.
    """
    if (prompt is None) == (messages is None):
        raise InvalidRequest("Give exactly one of 'prompt' and 'messages'.", param="prompt")
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    body: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    body.pop("idempotency_key", None)
    extras = body.pop("extras", {})
    if own := extras.keys() & _OWN:
        raise TypeError(f"not extras, but options: {', '.join(sorted(own))}")
    body |= extras
    if "stop" in body and not isinstance(body["stop"], str):
        body["stop"] = list(body["stop"])
    if prompt is not None:
        body["prompt"] = prompt
    else:
        if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
            raise InvalidRequest("'messages' must be a list.", param="messages")
        body["messages"] = [dict(each) if isinstance(each, Mapping) else each for each in messages]
    return body | {"background": True} if background else body


def limit_of(options: Options) -> float | None:
    """How long a call may try: a little longer than the request itself may take."""
    timeout_s = options.get("timeout_s")
    return None if timeout_s is None else timeout_s + SLACK_S


def cancels_on_close(options: Options) -> bool:
    """Whether closing a stream cancels it: not if `on_disconnect` is `resume` or `continue`."""
    return options.get("on_disconnect") in (None, "cancel")


def policy_of(
    urls: Sequence[str],
    max_retries: int,
    silence_s: float,
    patience_s: float,
    reach_s: float,
    on_retry: OnRetry | None = None,
) -> Policy:
    """With the URLs of PENSTOCK_URL (separated by commas) where none is given. Raises `ConfigError`."""
    named = urls or [url for url in os.environ.get("PENSTOCK_URL", "").split(",") if url.strip()] or [DEFAULT_URL]
    return Policy(Route(named), max_retries, silence_s, patience_s, reach_s, on_retry)


def headers_of(api_key: str | None) -> dict[str, str]:
    """With the key of PENSTOCK_API_KEY where none is given. Raises `ConfigError` for one that no header can hold."""
    key = os.environ.get("PENSTOCK_API_KEY") if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("the API key holds characters that no key has")
    return {"user-agent": "penstock-client", **({"authorization": f"Bearer {key}"} if key else {})}
