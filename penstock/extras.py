"""Extras: fields of a request that some engines have and the APIs do not. By name and as they came, they go to a model
whose backend lists them in `Capabilities.accepts`.

`EXTRAS` are the known ones: an API refuses one of them as a field that the model does not support. A name that is
neither known nor accepted by any model is an unknown field. Not among them, and not to be: fields that name files,
URLs, hosts, adapters or code, fields about other requests (priorities, ids), and those that change the form of an
answer.

Knows no engine: which one has which of them is for its backend to declare.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SAMPLING = (
    *("ignore_eos", "min_tokens", "stop_token_ids", "stop_regex", "no_stop_trim", "include_stop_str_in_output"),
    *("skip_special_tokens", "spaces_between_special_tokens", "bad_words", "allowed_token_ids"),
    *("truncate_prompt_tokens", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "dynatemp_range", "dynatemp_exponent", "repeat_last_n"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
)
TEMPLATE = ("chat_template_kwargs", "enable_thinking", "add_generation_prompt", "continue_final_message", "documents")
REASONING = ("include_reasoning", "separate_reasoning", "stream_reasoning", "thinking_token_budget")
# They apply from the beginning of an answer, so such an answer cannot be continued elsewhere.
GRAMMARS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("regex", "ebnf", "grammar", "json_schema"),
)
CACHING = ("cache_salt", "cache_prompt")
# Of hosted APIs: a model that does not accept one of these goes without it.
HINTS = ("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "verbosity")

EXTRAS = frozenset((*SAMPLING, *TEMPLATE, *REASONING, *GRAMMARS, *CACHING, *HINTS))

# What every request has, whatever its engine: a backend sets these itself.
RESERVED = frozenset(
    (
        *("images", "image_urls", "token_ids"),  # abilities, not fields
        *("model", "messages", "prompt", "input", "inputs", "stream", "stream_options", "n", "extras"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "top_logprobs", "user", "metadata"),
        *("background", "timeout_s", "on_disconnect", "queue_events", "previous_response_id", "instructions"),
    )
)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NEAR = 0.85


def problem_of(name: str, fields: Iterable[str]) -> str | None:
    """Why a backend may not accept `name`, or None: `fields` and extras are known; another name must not resemble one,
    as that would be a misspelling. The problem follows the name."""
    known = {*fields, *EXTRAS}
    if name in known:
        return None
    near = difflib.get_close_matches(name, known, 1, _NEAR)
    if near:
        return f"is not known; did you mean {near[0]}?"
    if name in RESERVED:
        return "is not optional: every backend has it"
    return None if _NAME.fullmatch(name) else "is not the name of a field"
