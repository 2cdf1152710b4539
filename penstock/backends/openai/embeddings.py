"""Embeddings at an upstream: the body of a request to /embeddings, and its answer. Pure.

Form: https://platform.openai.com/docs/api-reference/embeddings. The inputs of a job travel some hundreds at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.backends.base import Embedded
from penstock.backends.openai.failures import malformed
from penstock.backends.openai.steps import Ask, Steps
from penstock.job import Job, TokenIds

EMBEDDINGS = "/embeddings"


def embed(job: Job, inputs: Sequence[str | TokenIds], model: str) -> Steps[Embedded]:
    return read((yield Ask(EMBEDDINGS, build(job, inputs, model))), len(inputs))


def build(job: Job, inputs: Sequence[str | TokenIds], model: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "input": list(inputs), "encoding_format": "float"}
    if job.sampling.dimensions is not None:
        body["dimensions"] = job.sampling.dimensions
    if job.user:
        body["user"] = job.user
    return body


def read(data: bytes, num: int) -> Embedded:
    """`num` vectors in the order of their inputs. Raises `UpstreamError`."""
    try:
        answer = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise malformed("embeddings that are not JSON") from None
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != num or not all(isinstance(row, dict) for row in rows):
        raise malformed(f"it does not contain {num} embeddings")
    indices = [row.get("index", place) for place, row in enumerate(rows)]
    if not all(type(index) is int for index in indices):
        raise malformed("an embedding whose index is not a number")
    by_index = {index: row.get("embedding") for index, row in zip(indices, rows, strict=True)}
    vectors = [by_index.get(place) for place in range(num)]
    if not all(isinstance(vector, list) and vector and all(map(_is_number, vector)) for vector in vectors):
        raise malformed("an embedding that is not a list of numbers")
    usage = answer.get("usage")
    prompt_tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    is_count = type(prompt_tokens) is int and prompt_tokens >= 0
    return Embedded([vector for vector in vectors if vector is not None], prompt_tokens if is_count else None)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 3.4e38  # what float32 holds
