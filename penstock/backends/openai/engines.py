"""How the engines behind the one API differ: which fields they honour, and their names for them. Pure.

A field that an engine would silently ignore is not in its list, so that the gateway refuses it with 400. A field that
depends on how the engine was launched (tools, images) is: the engine's own 400 is passed on. From the engines' own
documentation and request schemas of 2026; an operator lists what an older release has (vLLM's `guided_json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Resume = Literal["prompt", "messages"]
# How to ask an engine for as many tokens as its context holds: without a limit, with null, or not at all.
Unlimited = Literal["left_out", "null", "never"]

TokenizerName = Literal["", "vllm", "sglang", "llamacpp", "tgi"]
ScoreForm = Literal["", "score", "rerank"]
EngineName = Literal["any", "vllm", "sglang", "llamacpp", "ollama", "tgi", "openai"]

_EVERY = ("temperature", "top_p", "stop")
_USUAL = (*_EVERY, "seed", "presence_penalty", "frequency_penalty")
_ALL = (
    *_USUAL,
    *("top_k", "min_p", "repetition_penalty", "logit_bias", "logprobs"),
    *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "images"),
)


# Extras. Left out although the engines have them: what names files, adapters, hosts or code (`lora_path`,
# `chat_template`, `kv_transfer_params`, `custom_logit_processor`), what is about other requests (`priority`, `rid`,
# `id_slot`), what lets a client choose the memory that an image takes (`mm_processor_kwargs`), and what asks for more
# than an answer has (`prompt_logprobs`, `return_token_ids`).
_VLLM = (
    *("ignore_eos", "min_tokens", "stop_token_ids", "include_stop_str_in_output", "skip_special_tokens"),
    *("spaces_between_special_tokens", "bad_words", "allowed_token_ids", "truncate_prompt_tokens"),
    *("chat_template_kwargs", "enable_thinking", "add_generation_prompt", "continue_final_message", "documents"),
    *("include_reasoning", "structured_outputs", "cache_salt"),
)
_SGLANG = (
    *("ignore_eos", "min_tokens", "stop_token_ids", "stop_regex", "no_stop_trim", "skip_special_tokens"),
    *("chat_template_kwargs", "enable_thinking", "continue_final_message", "separate_reasoning", "stream_reasoning"),
    *("regex", "ebnf", "cache_salt"),
)
_LLAMACPP = (
    *("ignore_eos", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "repeat_last_n"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "dynatemp_range", "dynatemp_exponent"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    *("chat_template_kwargs", "enable_thinking", "grammar", "json_schema", "cache_prompt"),
)
# Not `service_tier` and `store`: they let a client choose the operator's price, and what the provider keeps.
_OPENAI = ("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "verbosity")

_THINKING = ("enable_thinking",)
_PROMPT: frozenset[Resume] = frozenset(("prompt",))


@dataclass(frozen=True, slots=True)
class Engine:
    """`accepts`: fields of `Sampling`, extras, "images" (in the request itself) and "image_urls" (that the engine
    fetches: only for engines outside our network). `names`: the engine's own spelling of a field. `in_template`: extras
    that it takes in its `chat_template_kwargs`.

    `vision`: a path at the server's root whose JSON has `modalities.vision`, where images depend on the model loaded.

    `reasoning`: what it calls the reasoning of an earlier answer in its messages; () where it has no field for it.

    `chat_unlimited`, `prompt_unlimited`: how a request of each kind asks for as many tokens as there is room for.

    `health`: a path at the server's root that answers 2xx when the engine can work, "" where there is none.
    `has_completions`: whether there is /completions; without it a prompt is sent as a user's message. `continues`: what
    it can go on from in the middle of an answer. Ollama puts a prompt into the model's template too, so not that.

    `tokenizer`: the form of its tokenizer's routes, "" where it has none. `scores`: the route that scores texts.
    """

    accepts: tuple[str, ...] = _EVERY
    names: Mapping[str, str] = field(default_factory=dict)
    in_template: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    vision: str = ""
    chat_unlimited: Unlimited = "left_out"
    prompt_unlimited: Unlimited = "never"  # /completions without a limit gives 16 tokens, unless an engine knows better
    health: str = ""
    has_completions: bool = True
    continues: frozenset[Resume] = frozenset(("prompt", "messages"))
    tokenizer: TokenizerName = ""
    scores: ScoreForm = ""


ENGINES: dict[EngineName, Engine] = {
    "any": Engine(),
    "vllm": Engine(
        (*_ALL, *_VLLM, "token_ids", "add_special_tokens", "return_token_strs"),
        in_template=_THINKING,
        reasoning=("reasoning", "reasoning_content"),
        prompt_unlimited="null",
        health="/health",
        tokenizer="vllm",
        scores="score",
    ),
    "sglang": Engine(
        (*_ALL, *_SGLANG, "token_ids", "add_special_tokens"),
        in_template=_THINKING,
        reasoning=("reasoning_content",),
        health="/health",
        tokenizer="sglang",
        scores="rerank",
    ),
    "llamacpp": Engine(
        (
            *(name for name in _ALL if name not in ("reasoning_effort", "images")),
            *("add_special_tokens", "return_token_strs"),
            *_LLAMACPP,
        ),
        {"repetition_penalty": "repeat_penalty"},
        in_template=_THINKING,
        reasoning=("reasoning_content",),
        vision="/props",
        prompt_unlimited="left_out",
        health="/health",
        continues=_PROMPT,
        tokenizer="llamacpp",
        scores="rerank",
    ),
    "ollama": Engine(
        (*_USUAL, "response_format", "tools", "images", "reasoning_effort"),
        prompt_unlimited="left_out",
        health="/api/version",
        continues=frozenset(),
    ),
    "tgi": Engine(
        (*_USUAL, "logprobs", "tools", "tool_choice", "response_format", "images", "return_token_strs"),
        chat_unlimited="never",  # some of its releases give 100 tokens then
        health="/health",
        continues=_PROMPT,
        tokenizer="tgi",
    ),
    "openai": Engine(
        (
            *(name for name in _ALL if name not in ("top_k", "min_p", "repetition_penalty")),
            *("image_urls", "token_ids"),
            *_OPENAI,
        ),
        {"max_tokens": "max_completion_tokens"},
        has_completions=False,
        continues=frozenset(),
    ),
}
