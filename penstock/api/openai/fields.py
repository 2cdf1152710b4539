"""What the bodies of OpenAI's APIs have in common: fields, what of them Penstock never does, and their `Sampling`.

A field is honoured, or refused with its name: by the model's capabilities, or here, where no backend could honour it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from penstock.api.intake import Draft
from penstock.errors import UnsupportedParameter
from penstock.job import OnDisconnect

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_TOOLS = 128
MAX_TOP_LOGPROBS = 20
MAX_METADATA = 16

Stop = Annotated[str, Field(min_length=1, max_length=200)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _pause(value: Any) -> Any:
    return value


# On each item of a long list: pydantic holds the interpreter from the first item to the last, and lets go of it only
# where it calls Python. Without this the event loop would be blocked while another thread validates a large body.
PAUSE = BeforeValidator(_pause)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def given(model: BaseModel) -> dict[str, Any]:
    """The fields of `model` that are not null, with their values as they came.

    `model_dump` copies a tool's whole schema, holding the interpreter, and with it the event loop, all the while.
    """
    return {name: value for name, value in vars(model).items() if value is not None}


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="A last chunk with the usage, before `[DONE]`.")
    include_obfuscation: Literal[False] | None = None


class SamplingFields(Strict):
    """The fields that mean the same in every API of this family."""

    model: str | None = Field(None, min_length=1, max_length=200, description="Default: the first model served.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    user: str | None = Field(None, max_length=200, description="Your name for your user; passed on to an upstream.")
    stream: bool | None = Field(None, description="Server-Sent Events. Default: false.")
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")
    on_disconnect: OnDisconnect | None = Field(
        None,
        description="Penstock's own: when the last reader leaves. Default: cancel; with an Idempotency-Key, resume.",
    )


class ChoiceFields(SamplingFields):
    """The fields of chat completions and completions."""

    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="How many answers; each is a request of its own.")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias], Field(max_length=300)] | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=1, description="Not OpenAI's own, but common.")
    min_p: float | None = Field(None, ge=0, le=1, description="Not OpenAI's own, but common.")
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="Not OpenAI's own, but common.")

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def choice_sampling(body: ChoiceFields) -> dict[str, Any]:
    """The fields of `Sampling` that both of these bodies have."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stop": stop,
        "seed": body.seed,
        "presence_penalty": body.presence_penalty or None,  # 0 is the default everywhere, and asks for nothing
        "frequency_penalty": body.frequency_penalty or None,
        "repetition_penalty": None if body.repetition_penalty == 1 else body.repetition_penalty,
        "logit_bias": body.logit_bias or None,
        "top_k": body.top_k,
        "min_p": body.min_p or None,
    }


def copies(draft: Draft, n: int) -> list[Draft]:
    """`n` drafts of the same answer. With a seed each has its own, counted up from it, or all would be one answer."""
    seed = draft.sampling.get("seed")
    if seed is None:
        return [draft] * n
    return [
        replace(draft, sampling=draft.sampling | {"seed": (seed + 2**63 + number) % 2**64 - 2**63})
        for number in range(n)
    ]


def without_refused(data: dict[str, Any], allowed: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """`data` without the fields in `allowed`, which no backend honours beyond the values there (and null).

    Raises `UnsupportedParameter`, which is clearer than "unknown field" to a client that knows the field.
    """
    for name, values in allowed.items():
        value = data.get(name)
        if value is not None and not any(type(value) is type(each) and value == each for each in values):
            raise UnsupportedParameter(f"Penstock does not support '{name}'{_but(values)}.", param=name)
    return {name: value for name, value in data.items() if name not in allowed}


def _but(values: tuple[Any, ...]) -> str:
    shown = [str(value).lower() if isinstance(value, bool) else repr(value) for value in values]
    return f" (other than {' or '.join(shown)})" if shown else ""
