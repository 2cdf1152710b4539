"""instructor in its modes: tools, JSON, JSON by schema, JSON in Markdown, and both APIs of other forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.program import Program

PROGRAM = Program("instructor", python=("instructor",))
PARIS: Any = [{"role": "user", "content": "Paris"}]


class City(BaseModel):
    """A city."""

    name: str
    population: int


def _client(mode: str) -> Any:
    import instructor
    from openai import OpenAI

    return instructor.from_openai(OpenAI(), mode=instructor.Mode[mode])


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_an_object(url: str, mode: str) -> None:
    city = _client(mode).create(model="mock", messages=PARIS, response_model=City, max_retries=0)
    assert isinstance(city, City)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_an_object_streamed(url: str, mode: str) -> None:
    parts = list(_client(mode).create_partial(model="mock", messages=PARIS, response_model=City))
    City.model_validate(parts[-1].model_dump())


def test_a_list_of_objects(url: str) -> None:
    cities = _client("TOOLS").create(model="mock", messages=PARIS, response_model=Iterable[City], max_retries=0)
    assert all(isinstance(city, City) for city in cities)


def test_anthropic_tools(url: str) -> None:
    import instructor
    from anthropic import Anthropic

    client = instructor.from_anthropic(Anthropic())
    city = client.create(model="mock", messages=PARIS, response_model=City, max_tokens=200, max_retries=0)
    assert isinstance(city, City)
