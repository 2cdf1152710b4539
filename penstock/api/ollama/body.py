"""`POST /api/chat`, `/api/generate`, `/api/embed` and `/api/embeddings`: their bodies to a `Draft`. Pure.

Form: https://docs.ollama.com/api. What a model cannot do is refused by its capabilities. A prompt is the user's turn of
a conversation, as with Ollama, whose models apply their template to it; with `raw` it is a text to go on from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.conversation import FunctionSchema
from penstock.api.fields import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    PAUSE,
    Stop,
    Strict,
    given,
)
from penstock.api.intake import Draft
from penstock.api.ollama.turns import Images, OllamaTurn, messages_of, user_turn
from penstock.errors import InvalidRequest
from penstock.job import Message, OnDisconnect

MAX_INPUTS = 256

# Fields of the API that no backend of ours honours, and the values of each that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {"context": ([],), "suffix": ("",), "template": ("",)}

Model = Annotated[str, Field(min_length=1, max_length=200)]
EmbeddingInput = Annotated[str, Field(min_length=1)]


class Options(Strict):
    num_predict: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    repeat_penalty: float | None = Field(None, gt=0, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    mirostat: int | None = Field(None, ge=1, le=2)
    mirostat_tau: float | None = Field(None, ge=0)
    mirostat_eta: float | None = Field(None, ge=0)
    typical_p: float | None = Field(None, ge=0, le=1)
    repeat_last_n: int | None = Field(None, ge=-1)

    def extras(self) -> dict[str, Any]:
        """Options that are engines' own."""
        return {name: value for name in _EXTRAS if (value := getattr(self, name)) is not None}

    def sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that these make. A value that asks for nothing is None."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p or None,
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "repetition_penalty": None if self.repeat_penalty == 1 else self.repeat_penalty,
            "presence_penalty": self.presence_penalty or None,
            "frequency_penalty": self.frequency_penalty or None,
        }


class OllamaFields(Strict):
    """The fields of both APIs that generate."""

    model: Model | None = Field(None, description="Default: the first model served. A tag `:latest` may be added.")
    stream: bool | None = Field(None, description="One JSON object a line. Default: true.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(None, description="`json`, or a JSON schema.")
    think: bool | Literal["low", "medium", "high"] | None = Field(
        None, description="How much to think: a wish, which counts where the model has `reasoning_effort`."
    )
    options: Options | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")
    on_disconnect: OnDisconnect | None = Field(None, description="Penstock's own: when the last reader leaves.")

    @property
    def is_stream(self) -> bool:
        return self.stream is not False

    def draft(self, messages: tuple[Message, ...] | None, prompt: str | None, images: str) -> Draft:
        """`images`: the name of the field that may hold some. Raises `InvalidRequest`."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        options = self.options or Options()
        return Draft(
            model=self.model,
            prompt=prompt,
            messages=messages,
            max_tokens=options.num_predict,
            sampling=options.sampling()
            | {
                "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
                "response_format": _response_format(self.format),
            },
            hints={"reasoning_effort": _effort(self.think)},
            extras=options.extras(),
            stream=self.is_stream,
            timeout_s=self.timeout_s,
            on_disconnect=self.on_disconnect,
            names=_NAMES | {"messages": images} | ({"logprobs": "top_logprobs"} if self.top_logprobs else {}),
        )


_EXTRAS = ("mirostat", "mirostat_tau", "mirostat_eta", "typical_p", "repeat_last_n")
_NAMES = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
} | {
    name: f"options.{name}"
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        *_EXTRAS,
    )
}


class OllamaTool(Strict):
    type: Literal["function"] | None = None
    function: FunctionSchema


class OllamaChatBody(OllamaFields):
    """A conversation to answer. Form: https://docs.ollama.com/api/chat."""

    messages: Annotated[list[Annotated[OllamaTurn, PAUSE]], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = (
        Field(None, description="Without any the answer is that the model is loaded.")
    )
    tools: Annotated[list[OllamaTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None

    @property
    def is_load(self) -> bool:
        return not self.messages


class OllamaGenerateBody(OllamaFields):
    """A prompt to answer. Form: https://docs.ollama.com/api/generate."""

    prompt: str | None = Field(None, description="Without it the answer is that the model is loaded.")
    system: str | None = None
    images: Images | None = None
    raw: bool | None = Field(None, description="True: text to continue, without a template.")

    @property
    def is_load(self) -> bool:
        return not self.prompt and not self.images


class OllamaEmbedBody(Strict):
    """Texts to embed. Form: https://docs.ollama.com/api/embed."""

    model: Model | None = None
    input: EmbeddingInput | Annotated[list[EmbeddingInput], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    dimensions: int | None = Field(None, ge=1, le=65_536)
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")

    def draft(self) -> Draft:
        inputs = (self.input,) if isinstance(self.input, str) else tuple(self.input)
        return _embedding(self.model, inputs, self.timeout_s, self.dimensions)


class OllamaEmbeddingsBody(Strict):
    """A text to embed, in the older form."""

    model: Model | None = None
    prompt: EmbeddingInput
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")

    def draft(self) -> Draft:
        return _embedding(self.model, (self.prompt,), self.timeout_s)


class OllamaShowBody(Strict):
    """The name of a model."""

    model: Model | None = None
    name: Model | None = Field(None, description="The older name of `model`.")


def chat_draft_of(body: OllamaChatBody) -> Draft:
    """The request in `body`, which has messages. Raises `InvalidRequest`."""
    draft = body.draft(messages_of(body.messages or ()), None, "messages")
    tools = [{"type": "function", "function": given(tool.function)} for tool in body.tools or ()]
    draft.sampling["tools"] = tuple(tools)
    return draft


def generate_draft_of(body: OllamaGenerateBody) -> Draft:
    """The request in `body`, which has a prompt or images. Raises `InvalidRequest`."""
    if body.raw:
        for name in ("system", "images"):
            if getattr(body, name):
                raise InvalidRequest(f"'{name}' needs a template, which 'raw' leaves out.", param=name)
        return body.draft(None, body.prompt, "images")
    system = (Message("system", body.system),) if body.system else ()
    return body.draft((*system, user_turn(body.prompt or "", body.images or [])), None, "images")


def _embedding(model: str | None, inputs: tuple[str, ...], timeout_s: float | None, size: int | None = None) -> Draft:
    # One number of tokens for all, so that all of a model may share a batch.
    return Draft(model=model, inputs=inputs, max_tokens=MAX_INPUTS, sampling={"dimensions": size}, timeout_s=timeout_s)


def _response_format(format_: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """A `Sampling` has it in the form of OpenAI's chat completions."""
    if isinstance(format_, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": format_, "strict": True}}
    return {"type": "json_object"} if format_ else None


def _effort(think: bool | str | None) -> str | None:
    if isinstance(think, bool):
        return "medium" if think else "none"
    return think
