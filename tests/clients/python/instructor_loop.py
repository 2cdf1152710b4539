"""instructor in its modes: tools, JSON by schema, and two APIs of other forms. The environment names the server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import instructor
from anthropic import Anthropic
from checks import run_and_print
from openai import OpenAI
from pydantic import BaseModel

PARIS: Any = [{"role": "user", "content": "Paris"}]


class City(BaseModel):
    """A city."""

    name: str
    population: int


def _city(mode: str) -> None:
    client: Any = instructor.from_openai(OpenAI(), mode=instructor.Mode[mode])
    city = client.create(model="mock", messages=PARIS, response_model=City, max_retries=0)
    assert isinstance(city, City)


def tools() -> None:
    _city("TOOLS")


def strict_tools() -> None:
    _city("TOOLS_STRICT")


def json_by_schema() -> None:
    _city("JSON_SCHEMA")


def tools_over_responses() -> None:
    _city("RESPONSES_TOOLS")


def object_streamed() -> None:
    client: Any = instructor.from_openai(OpenAI(), mode=instructor.Mode.TOOLS)
    parts = list(client.create_partial(model="mock", messages=PARIS, response_model=City, max_retries=0))
    City.model_validate(parts[-1].model_dump())


def list_of_objects() -> None:
    client: Any = instructor.from_openai(OpenAI(), mode=instructor.Mode.TOOLS)
    cities = list(client.create(model="mock", messages=PARIS, response_model=Iterable[City], max_retries=0))
    assert all(isinstance(city, City) for city in cities)


def tools_over_anthropic() -> None:
    client: Any = instructor.from_anthropic(Anthropic())
    city = client.create(model="mock", messages=PARIS, response_model=City, max_tokens=1000, max_retries=0)
    assert isinstance(city, City)


if __name__ == "__main__":
    of_chat = (tools, strict_tools, json_by_schema, object_streamed, list_of_objects)
    run_and_print(*of_chat, tools_over_responses, tools_over_anthropic)
