"""The tokenizer of an upstream, by the forms that each engine has for it. Pure.

From the engines' own documentation and sources. `UpstreamError` for an answer that is not what the engine promises,
`UnsupportedTask` for what it has no route for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.backends.openai.engines import TokenizerName
from penstock.backends.openai.failures import malformed
from penstock.backends.openai.steps import Ask, Steps
from penstock.errors import UnsupportedTask
from penstock.job import Job
from penstock.tasks import COUNT, DETOKENIZE, TOKENIZE, TOKENIZER_INFO, Tokenized


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be tokenized: a text, or else a `conversation`, which has the fields of the engine's own chats."""

    model: str
    text: str | None
    conversation: dict[str, Any]
    add_special: bool | None
    with_strs: bool

    @classmethod
    def of(cls, job: Job, model: str, conversation: dict[str, Any]) -> Prompt:
        asked = job.sampling
        text = job.prompt if isinstance(job.prompt, str) else None
        return cls(model, text, conversation, asked.add_special_tokens, bool(asked.return_token_strs))

    def refuse_images(self, engine: str) -> None:
        if any(isinstance(turn.get("content"), list) for turn in self.conversation["messages"]):
            raise UnsupportedTask(f"The model's upstream ({engine}) does not count the tokens of images.")


class TokenizerForm:
    """An engine's routes for its tokenizer, and the tasks that they are enough for. This one has none."""

    name = "the engine"
    tasks: tuple[str, ...] = ()

    def tokenize(self, prompt: Prompt) -> Steps[Tokenized]:
        raise self._lacks("tokenize")

    def detokenize(self, model: str, ids: Sequence[int]) -> Steps[str]:
        raise self._lacks("detokenize")

    def info(self) -> Steps[dict[str, Any]]:
        raise self._lacks("describe its tokenizer")

    def _lacks(self, what: str) -> UnsupportedTask:
        return UnsupportedTask(f"The model's upstream ({self.name}) cannot {what}.", param="model")


class Vllm(TokenizerForm):
    name = "vLLM"
    tasks = (COUNT, TOKENIZE, DETOKENIZE, TOKENIZER_INFO)

    def tokenize(self, prompt: Prompt) -> Steps[Tokenized]:
        body: dict[str, Any] = {"model": prompt.model}
        body |= prompt.conversation if prompt.text is None else {"prompt": prompt.text}
        if prompt.add_special is not None:
            body["add_special_tokens"] = prompt.add_special
        if prompt.with_strs:
            body["return_token_strs"] = True
        found = _object((yield Ask("/tokenize", body, at_root=True)))
        strs = found.get("token_strs") if prompt.with_strs else None
        return _tokenized(found.get("tokens"), strs, found.get("max_model_len"))

    def detokenize(self, model: str, ids: Sequence[int]) -> Steps[str]:
        found = _object((yield Ask("/detokenize", {"model": model, "tokens": list(ids)}, at_root=True)))
        return _text(found.get("prompt"))

    def info(self) -> Steps[dict[str, Any]]:
        return _object((yield Ask("/tokenizer_info", {}, at_root=True, method="GET")))


class SGLang(TokenizerForm):
    name = "SGLang"
    tasks = (TOKENIZE, DETOKENIZE)

    def tokenize(self, prompt: Prompt) -> Steps[Tokenized]:
        if prompt.text is None:
            raise self._lacks("tokenize a conversation, only a prompt")
        body: dict[str, Any] = {"model": prompt.model, "prompt": prompt.text}
        if prompt.add_special is not None:
            body["add_special_tokens"] = prompt.add_special
        found = _object((yield Ask("/tokenize", body, at_root=True)))
        return _tokenized(found.get("tokens"), None, found.get("max_model_len"))

    def detokenize(self, model: str, ids: Sequence[int]) -> Steps[str]:
        body = {"model": model, "tokens": list(ids), "skip_special_tokens": False}
        return _text(_object((yield Ask("/detokenize", body, at_root=True))).get("text"))


class LlamaCpp(TokenizerForm):
    """A conversation is put into the model's template first, as the engine does with one that it answers."""

    name = "llama.cpp"
    tasks = (COUNT, TOKENIZE, DETOKENIZE)

    def tokenize(self, prompt: Prompt) -> Steps[Tokenized]:
        text = prompt.text
        if text is None:
            prompt.refuse_images(self.name)
            text = _text(_object((yield Ask("/apply-template", prompt.conversation, at_root=True))).get("prompt"))
        body = {"content": text, "add_special": prompt.add_special is not False, "with_pieces": prompt.with_strs}
        tokens = _object((yield Ask("/tokenize", body, at_root=True))).get("tokens")
        if not prompt.with_strs:
            return _tokenized(tokens, None, None)
        rows = _rows(tokens)
        return _tokenized([row.get("id") for row in rows], [_piece(row.get("piece")) for row in rows], None)

    def detokenize(self, model: str, ids: Sequence[int]) -> Steps[str]:
        return _text(_object((yield Ask("/detokenize", {"tokens": list(ids)}, at_root=True))).get("content"))


class Tgi(TokenizerForm):
    name = "TGI"
    tasks = (COUNT, TOKENIZE)

    def tokenize(self, prompt: Prompt) -> Steps[Tokenized]:
        if prompt.text is None:
            prompt.refuse_images(self.name)
            body = {"model": prompt.model} | prompt.conversation
            found: Any = _object((yield Ask("/chat_tokenize", body, at_root=True))).get("tokenize_response")
        else:
            found = _json((yield Ask("/tokenize", {"inputs": prompt.text}, at_root=True)))
        rows = _rows(found)
        strs = [row.get("text") for row in rows] if prompt.with_strs else None
        return _tokenized([row.get("id") for row in rows], strs, None)


FORMS: dict[TokenizerName, TokenizerForm] = {
    "": TokenizerForm(),
    "vllm": Vllm(),
    "sglang": SGLang(),
    "llamacpp": LlamaCpp(),
    "tgi": Tgi(),
}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise malformed("a result that is not JSON") from None


def _object(data: bytes) -> dict[str, Any]:
    found = _json(data)
    if not isinstance(found, dict):
        raise malformed("a result that is not an object")
    return found


def _rows(found: Any) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise malformed("tokens that are not a list of objects")
    return found


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise malformed("a result without its text")
    return found


def _piece(piece: Any) -> Any:
    """A token's text; llama.cpp has its bytes where they are not text alone."""
    if isinstance(piece, list) and all(type(byte) is int and 0 <= byte < 256 for byte in piece):
        return bytes(piece).decode("utf-8", "replace")
    return piece


def _tokenized(ids: Any, strs: Any, max_model_len: Any) -> Tokenized:
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise malformed("tokens that are not a list of ids")
    if strs is not None and (len(strs) != len(ids) or not all(isinstance(text, str) for text in strs)):
        raise malformed("texts that are not those of its tokens")
    has_length = type(max_model_len) is int and max_model_len > 0
    return Tokenized(tuple(ids), None if strs is None else tuple(strs), max_model_len if has_length else None)
