"""Scores at an upstream: vLLM's /score, or a /rerank in the form of Jina or of SGLang. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from penstock.backends.base import Scored
from penstock.backends.openai.engines import ScoreForm
from penstock.backends.openai.failures import malformed
from penstock.backends.openai.steps import Ask, Steps


def score(form: ScoreForm, model: str, queries: Sequence[str], inputs: Sequence[str]) -> Steps[Scored]:
    """`queries`: one for each of `inputs`. /rerank takes one: a job of several makes a request for each."""
    if form == "score":
        return (yield from _score(model, queries, inputs))
    scores: list[float] = []
    prompt_tokens: int | None = 0
    for query, pairs in groupby(zip(queries, inputs, strict=True), lambda pair: pair[0]):
        documents = [text for _, text in pairs]
        found = _json((yield Ask("/rerank", {"model": model, "query": query, "documents": documents})))
        scores += _scores(found.get("results") if isinstance(found, dict) else found, len(documents))
        used = _usage(found)
        prompt_tokens = None if used is None or prompt_tokens is None else prompt_tokens + used
    return Scored(scores, prompt_tokens)


def _score(model: str, queries: Sequence[str], inputs: Sequence[str]) -> Steps[Scored]:
    text_1: Any = queries[0] if len(set(queries)) == 1 else list(queries)
    found = _json((yield Ask("/score", {"model": model, "text_1": text_1, "text_2": list(inputs)})))
    return Scored(_scores(found.get("data") if isinstance(found, dict) else None, len(inputs)), _usage(found))


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise malformed("scores that are not JSON") from None


def _scores(rows: Any, num: int) -> list[float]:
    """`num` scores in the order of their inputs."""
    if not isinstance(rows, list) or len(rows) != num or not all(isinstance(row, dict) for row in rows):
        raise malformed(f"it does not contain {num} scores")
    by_index = {}
    for place, row in enumerate(rows):
        index = row.get("index", place)
        if type(index) is not int:
            raise malformed("a score whose index is not a number")
        by_index[index] = row.get("relevance_score", row.get("score"))
    scores = [by_index.get(place) for place in range(num)]
    if not all(map(_is_number, scores)):
        raise malformed("a score that is not a number")
    return [float(one) for one in scores if one is not None]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _usage(found: Any) -> int | None:
    if isinstance(found, list):  # SGLang's
        metas = [row.get("meta_info") for row in found]
        counts = [meta["prompt_tokens"] for meta in metas if isinstance(meta, dict) and "prompt_tokens" in meta]
        return sum(counts) if len(counts) == len(found) and all(type(count) is int for count in counts) else None
    usage = found.get("usage")
    for name in ("prompt_tokens", "total_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else None
        if type(count) is int and count >= 0:
            return count
    return None
