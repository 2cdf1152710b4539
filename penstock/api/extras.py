"""From a body: the fields that are not its API's own but an engine's. See `penstock/extras.py`. Pure.

Every API takes them at the top of its body, where the SDKs put what is given as `extra_body`.
"""

from __future__ import annotations

from collections.abc import Container, Set
from typing import Any, NamedTuple

from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.fleet import Capabilities

_KWARGS = "chat_template_kwargs"
# Engines hand these kwargs on to the function that renders the template. Its own arguments are not for a client: a
# template of the client's is a program, and `tokenize` or `padding` occupy the engine's server for as long as it likes.
_ARGUMENTS = frozenset(
    (
        *("chat_template", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "load_audio_from_video", "processor_kwargs"),
    )
)


class Extras(NamedTuple):
    """`asked`: refused by a model that does not accept them. `hints`: a model that does not goes without them."""

    asked: dict[str, Any]
    hints: dict[str, Any]

    def for_model(self, can: Capabilities) -> dict[str, Any]:
        """`Sampling.extras`."""
        return self.asked | {name: value for name, value in self.hints.items() if name in can.accepts}


NO_EXTRAS = Extras({}, {})


def split(data: dict[str, Any], own: Set[str], known: Container[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`data` without extras, and these: what is not among the API's `own` fields, but `known`. null asks for nothing.

    Raises `InvalidRequest` and `UnsupportedParameter` for an extra that no engine may get.
    """
    extras = {name: value for name, value in data.items() if name not in own and name in known}
    if not extras:
        return data, {}
    asked = {name: value for name, value in extras.items() if value is not None}
    if _KWARGS in asked:
        check_kwargs(asked[_KWARGS])
    return {name: value for name, value in data.items() if name not in extras}, asked


def check_kwargs(kwargs: Any) -> None:
    """Raises `InvalidRequest` and `UnsupportedParameter` for `chat_template_kwargs` that no engine may get."""
    if not isinstance(kwargs, dict):
        raise InvalidRequest(f"'{_KWARGS}' must be an object.", param=_KWARGS)
    for name in kwargs:
        if name in _ARGUMENTS:
            path = f"{_KWARGS}.{name}"
            raise UnsupportedParameter(f"Penstock does not pass on '{path}'.", param=path)
