"""The fields that change no answer: one table for every API, from which docs/api.md is written. Pure.

Four kinds: *hints* (to a cache, a meter, a user's own books), values that ask for nothing (the default of their
field), tools that only the provider of an API could run, and parts of an answer that a client gives back. The first
three are taken out of the body before it is validated; the last are fields of the bodies. A request with them makes
the same `Job` as one without; a few hints become extras where the model's backend accepts them. Every other field is
honoured or refused: `tests/unit/api/test_every_field.py`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from penstock.api.fields import without_refused
from penstock.api.provider_tools import leave_out_tools
from penstock.http.sifted import sifted

Api = Literal["native", "chat", "completions", "responses", "messages", "ollama", "ollama-embed"]

NATIVE: tuple[Api, ...] = ("native",)
CHAT: tuple[Api, ...] = ("chat",)
RESPONSES: tuple[Api, ...] = ("responses",)
MESSAGES: tuple[Api, ...] = ("messages",)
OLLAMA: tuple[Api, ...] = ("ollama",)
PLAIN: tuple[Api, ...] = ("native", "chat", "completions")
TALKS: tuple[Api, ...] = ("native", "chat", "messages")  # those whose conversation is `messages`
ALL: tuple[Api, ...] = ("native", "chat", "completions", "responses", "messages")
TOOLED: tuple[Api, ...] = ("native", "chat", "responses", "messages")


class Row(NamedTuple):
    """`path`: the field, with `*` for each item of a list. `values`: those that are taken; None: any value.

    `extra`: as what a hint is passed on to a model that accepts it; "" for one that never is.
    """

    path: str
    apis: tuple[Api, ...]
    values: tuple[Any, ...] | None = None
    extra: str = ""


# Ollama's options for loading a model, which an engine has done already.
_OF_A_RUNNER = (
    *("embedding_only", "f16_kv", "logits_all", "low_vram", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_keep"),
    *("num_thread", "numa", "use_mlock", "use_mmap", "vocab_only"),
)

HINTS = (
    Row("prompt_cache_key", ALL, extra="prompt_cache_key"),
    Row("prompt_cache_retention", ALL, extra="prompt_cache_retention"),
    Row("prompt_cache_options", ALL),
    Row("messages.*.content.*.prompt_cache_breakpoint", ("native", "chat")),
    Row("input.*.content.*.prompt_cache_breakpoint", RESPONSES),
    Row("input.*.output.*.prompt_cache_breakpoint", RESPONSES),
    Row("safety_identifier", ALL, extra="safety_identifier"),
    Row("session_id", ("native", "chat")),
    Row("chat_id", ("native", "chat")),
    Row("client_metadata", ALL),
    Row("service_tier", ("native", "chat", "completions", "responses"), extra="service_tier"),
    Row("service_tier", MESSAGES),  # Anthropic's has other values
    Row("verbosity", ALL, extra="verbosity"),
    Row("store", ("native", "chat", "completions"), extra="store"),
    Row("stream_options.continuous_usage_stats", ("chat", "completions")),
    Row("text.verbosity", RESPONSES, extra="verbosity"),
    Row("reasoning.summary", RESPONSES),
    Row("reasoning.generate_summary", RESPONSES),
    Row("context_management", MESSAGES),
    Row("thinking.display", MESSAGES),
    Row("cache_control", ALL),
    Row("system.*.cache_control", MESSAGES),
    Row("messages.*.id", TALKS),
    Row("messages.*.metadata", TALKS),
    Row("messages.*.cache_control", TALKS),
    Row("messages.*.content.*.cache_control", TALKS),
    Row("messages.*.content.*.content.*.cache_control", MESSAGES),
    Row("messages.*.tool_calls.*.cache_control", ("native", "chat")),
    Row("messages.*.parsed", ("native", "chat")),
    Row("messages.*.reasoning_details", ("native", "chat")),
    Row("messages.*.thinking_blocks", ("native", "chat")),
    Row("messages.*.provider_specific_fields", ("native", "chat")),
    Row("messages.*.tool_calls.*.provider_specific_fields", ("native", "chat")),
    Row("messages.*.tool_calls.*.function.provider_specific_fields", ("native", "chat")),
    Row("messages.*.tool_calls.*.extra_content", ("native", "chat")),
    Row("messages.*.tool_calls.*.function.parsed_arguments", ("native", "chat")),
    Row("messages.*.content.*.parsed_output", MESSAGES),
    Row("input.*.parsed_arguments", RESPONSES),
    Row("input.*.content.*.parsed", RESPONSES),
    Row("input.*.metadata", RESPONSES),
    Row("input.*.cache_control", RESPONSES),
    Row("input.*.content.*.cache_control", RESPONSES),
    Row("input.*.output.*.cache_control", RESPONSES),
    Row("tools.*.cache_control", TOOLED),
    Row("tools.*.function.cache_control", ("native", "chat")),
    Row("tools.*.eager_input_streaming", TOOLED),
    Row("tools.*.defer_loading", TOOLED),
    Row("tools.*.allowed_callers", TOOLED),
    Row("tools.*.input_examples", TOOLED),
    Row("stream_options.continuous_usage_stats", ("chat", "completions")),
    Row("keep_alive", ("ollama", "ollama-embed")),
    Row("verbose", OLLAMA),
    Row("truncate", ("ollama", "ollama-embed")),
    Row("shift", OLLAMA),
    Row("options", ("ollama-embed",)),
    *(Row(f"options.{name}", OLLAMA) for name in _OF_A_RUNNER),
)

NOTHING = (
    Row("tool_choice", TOOLED, ("auto", {"type": "auto"}, {"type": "auto", "disable_parallel_tool_use": False})),
    Row("parallel_tool_calls", ("native", "chat", "responses"), (True,)),
    Row("top_k", ("native", "chat", "completions", "messages"), (-1, 0)),
    Row("top_logprobs", ("native", "chat", "responses"), (0,)),
    Row("messages.*.images", ("native", "chat"), ([],)),
    Row("messages.*.content.*.annotations", ("native", "chat"), ([],)),
    Row("messages.*.content.*.caller", MESSAGES, ({"type": "direct"},)),
    Row("thinking.type", MESSAGES, ("adaptive", "enabled", "disabled")),
    Row("thinking", MESSAGES, ({},)),
    Row("options.top_k", OLLAMA, (-1, 0)),
    Row("options.num_predict", OLLAMA, (-1, -2)),
    Row("options.stop", OLLAMA, ([],)),
    Row("options.mirostat", OLLAMA, (0,)),
    Row("options.mirostat_tau", OLLAMA, (5, 5.0)),
    Row("options.mirostat_eta", OLLAMA, (0.1,)),
    Row("options.typical_p", OLLAMA, (1, 1.0)),
    Row("options.tfs_z", OLLAMA, (1, 1.0)),
    Row("options.repeat_last_n", OLLAMA, (64,)),
    Row("options.penalize_newline", OLLAMA, (True,)),
    Row("images", OLLAMA, ([],)),
    Row("n", PLAIN, (1,)),
    Row("max_tokens", PLAIN, (-1,)),
    Row("max_completion_tokens", CHAT, (-1,)),
    Row("max_output_tokens", RESPONSES, (-1,)),
    Row("stop", PLAIN, ([],)),
    Row("stop_sequences", MESSAGES, ([],)),
    Row("tools", (*TOOLED, "ollama"), ([],)),
    Row("ignore_eos", ALL, (False,)),
    Row("min_tokens", ALL, (0,)),
    Row("stop_token_ids", ALL, ([],)),
    Row("bad_words", ALL, ([],)),
    Row("skip_special_tokens", ALL, (True,)),
    Row("spaces_between_special_tokens", ALL, (True,)),
    Row("include_stop_str_in_output", ALL, (False,)),
    Row("add_generation_prompt", ALL, (True,)),
    Row("continue_final_message", ALL, (False,)),
    Row("chat_template_kwargs", ALL, ({},)),
    Row("include", RESPONSES, ([],)),
    Row("truncation", RESPONSES, ("auto", "disabled")),  # a permission, which is never used
    Row("stream_options.include_obfuscation", ("chat", "completions", "responses"), (False,)),
    Row("stream_options", ("chat", "completions", "responses"), ({},)),
)

# What the API answers, so that clients give it back; the model is not shown it again.
GIVEN_BACK = (
    Row("messages.*.audio", ("native", "chat")),
    Row("messages.*.annotations", ("native", "chat")),
    Row("messages.*.tool_calls.*.index", ("native", "chat")),
    Row("messages.*.tool_calls.*.function.index", OLLAMA),
    Row("messages.*.content.*.thinking", MESSAGES),
    Row("messages.*.content.*.signature", MESSAGES),
    Row("messages.*.content.*.data", MESSAGES),
    Row("input.*.id", RESPONSES),
    Row("input.*.status", RESPONSES),
    Row("input.*.summary", RESPONSES),
    Row("input.*.content", RESPONSES),
    Row("input.*.content.*.annotations", RESPONSES),
    Row("input.*.content.*.logprobs", RESPONSES),
)

# Objects in which a null field is as one that is not given, also one of another release of a client's package.
NULLS = (
    Row("messages.*", (*TALKS, "ollama")),
    Row("messages.*.tool_calls.*", ("native", "chat", "ollama")),
    Row("messages.*.tool_calls.*.function", ("native", "chat", "ollama")),
    Row("messages.*.content.*", TALKS),
    Row("messages.*.content.*.content.*", MESSAGES),
    Row("input.*", RESPONSES),
    Row("input.*.content.*", RESPONSES),
    Row("input.*.output.*", RESPONSES),
)

MAX_HINT = 512  # characters of one that is passed on
# Values of `include` that are hints: of reasoning, and of the tools that are left out.
INCLUDES = (
    "reasoning.encrypted_content",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
)


def extras_of(data: dict[str, Any], api: Api) -> dict[str, Any]:
    """The hints in `data` that a model may accept, as extras. Of another type than theirs they are not passed on."""
    found = {}
    for row in _PASSED[api]:
        value: Any = data
        for name in row.path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, bool if row.extra == "store" else str) and len(str(value)) <= MAX_HINT:
            found[row.extra] = value
    return found


def taken(data: dict[str, Any], api: Api, refused: dict[str, tuple[Any, ...]] | None = None) -> dict[str, Any]:
    """`data` without what changes no answer; it is changed in place, so that an idempotency key sees the same.

    `refused`: as for `without_refused`. Raises `UnsupportedParameter`.
    """
    leave_out_tools(data, is_function=api == "messages")
    if api == "responses" and isinstance(include := data.get("include"), list):
        data["include"] = sifted(include, lambda each: each not in INCLUDES)
    _strip(_TREES[api], data)
    return without_refused(data, refused) if refused else data


_PASSED: dict[Api, list[Row]] = {api: [row for row in HINTS if row.extra and api in row.apis] for api in ALL}


class _Node:
    """The hints and values that are taken at one place of a body, and below it."""

    __slots__ = ("below", "drops_nulls", "is_hint", "values")

    def __init__(self) -> None:
        self.is_hint = self.drops_nulls = False
        self.values: tuple[Any, ...] = ()
        self.below: dict[str, _Node] = {}

    def at(self, path: str) -> _Node:
        node = self
        for name in path.split("."):
            node = node.below.setdefault(name, _Node())
        return node


def _tree(api: Api) -> _Node:
    root = _Node()
    for row in HINTS + NOTHING:
        if api in row.apis:
            node = root.at(row.path)
            node.is_hint, node.values = row.values is None, row.values or ()
    for row in NULLS:
        if api in row.apis:
            root.at(row.path).drops_nulls = True
    return root


_TREES: dict[Api, _Node] = {api: _tree(api) for api in get_args(Api)}


def _strip(node: _Node, here: Any) -> None:
    if isinstance(here, list):
        if each := node.below.get("*"):
            for item in here:
                _strip(each, item)
    elif isinstance(here, dict):
        if node.drops_nulls and None in here.values():
            for name in [name for name, value in here.items() if value is None]:
                del here[name]
        for name, field in node.below.items():
            if name in here:
                if field.below:
                    _strip(field, here[name])
                if field.is_hint or _is_one_of(here[name], field.values):
                    del here[name]


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    return any(value == each and _has_types_of(value, each) for each in values)


def _has_types_of(value: Any, other: Any) -> bool:
    """Of two that are equal, and whose parts are numbers or text: true is not 1, nor 1.0."""
    if isinstance(value, dict):
        return all(type(item) is type(other[name]) for name, item in value.items())
    return type(value) is type(other)
