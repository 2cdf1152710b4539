"""Fields that several APIs have with one meaning: their types and limits, and what they make of a `Draft`. Pure.

A field is honoured, or refused with its name: by the model's capabilities, or here, where no backend could honour it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

from penstock.errors import InvalidRequest, UnsupportedParameter
from penstock.job import OnDisconnect, TokenIds

MAX_MESSAGES = 1000
MAX_STOPS = 32
MAX_STOP_LENGTH = 200
MAX_TOOLS = 512
MAX_TOP_LOGPROBS = 20
MAX_METADATA = 16
MAX_INPUTS = 2048  # to embed, of one request

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=2**63 - 1)]
TokenIdList = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]  # a body bounds its number of values


def _pause(value: Any) -> Any:
    return value


# On each item of a long list: pydantic holds the interpreter from the first item to the last, and lets go of it only
# where it calls Python. Without this the event loop would be blocked while another thread validates a large body.
PAUSE = BeforeValidator(_pause)


def exactly(value: bool | int) -> BeforeValidator:
    """For `Literal[value]`, which takes whatever is equal to it: true and 1.0 for 1, even where a model is strict."""

    def check(given: Any) -> Any:
        if type(given) is not type(value):
            raise PydanticKnownError("literal_error", {"expected": json.dumps(value)})
        return given

    return BeforeValidator(check)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def given(model: BaseModel) -> dict[str, Any]:
    """The fields of `model` that are not null, with their values as they came.

    `model_dump` copies a tool's whole schema, holding the interpreter, and with it the event loop, all the while.
    """
    return {name: value for name, value in vars(model).items() if value is not None}


def texts_of(given: str | list[str] | list[int] | list[list[int]]) -> list[str | TokenIds]:
    """The texts of a field that has one or several, each a string or its token ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(given)]
    return [text if isinstance(text, str) else tuple(text) for text in given]


class RequestFields(Strict):
    """The fields of every API that generates. Extras (`api/extras.py`) are taken out before a body is validated."""

    model_config = ConfigDict(
        json_schema_extra={
            "additionalProperties": {"description": "An extra: a field of the model's engine. Other names are refused."}
        }
    )

    model: str | None = Field(None, min_length=1, max_length=200, description="Default: the first model served.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling. Default: the backend's.")
    stream: bool | None = Field(None, description="Server-Sent Events. Default: false.")
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")
    on_disconnect: OnDisconnect | None = Field(
        None,
        description="Penstock's own: when the last reader leaves. Default: cancel; with an Idempotency-Key, resume.",
    )


class SamplingFields(RequestFields):
    """The fields of every API but Anthropic's, which has them with other limits or under other names."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default: the backend's.")
    user: str | None = Field(None, max_length=200, description="Your name for your user; passed on to an upstream.")


class GenerationFields(SamplingFields):
    """The fields of chat completions, completions and Penstock's own API."""

    max_tokens: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = Field(
        None, description=f"Up to {MAX_STOPS} strings that end the answer; they are not part of it."
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="Not OpenAI's own, but common.")
    logit_bias: Annotated[dict[str, Bias], Field(max_length=300)] | None = None
    top_k: int | None = Field(None, ge=1, description="Not OpenAI's own, but common.")
    min_p: float | None = Field(None, ge=0, le=1, description="Not OpenAI's own, but common.")

    def sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that these make. A value that asks for nothing is None."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": stop,
            "seed": self.seed,
            "presence_penalty": self.presence_penalty or None,  # 0 is the default everywhere, and asks for nothing
            "frequency_penalty": self.frequency_penalty or None,
            "repetition_penalty": None if self.repetition_penalty == 1 else self.repetition_penalty,
            "logit_bias": self.logit_bias or None,
            "top_k": self.top_k,
            "min_p": self.min_p or None,
        }


def check_tools(body: Any) -> None:
    """Raises `InvalidRequest` for a choice that demands a tool without tools."""
    if not body.tools and body.tool_choice not in (None, "auto", "none"):
        raise InvalidRequest("'tool_choice' needs 'tools'.", param="tool_choice")


_ADVICE = {
    "conversation": " Give 'previous_response_id', or the items of the conversation in 'input'.",
    "function_call": " Give 'tool_choice'.",
    "functions": " Give 'tools'.",
    "thread": " Send the whole conversation without it.",
}


def without_refused(data: dict[str, Any], allowed: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """`data` without the fields in `allowed`, which no backend honours beyond the values there (and null).

    Raises `UnsupportedParameter`, which is clearer than "unknown field" to a client that knows the field.
    """
    for name, values in allowed.items():
        value = data.get(name)
        if value is not None and not any(type(value) is type(each) and value == each for each in values):
            advice = _ADVICE.get(name, "")
            raise UnsupportedParameter(f"Penstock does not support '{name}'{_but(values)}.{advice}", param=name)
    return {name: value for name, value in data.items() if name not in allowed}


def _but(values: tuple[Any, ...]) -> str:
    shown = [str(value).lower() if isinstance(value, bool) else repr(value) for value in values]
    return f" (other than {' or '.join(shown)})" if shown else ""
