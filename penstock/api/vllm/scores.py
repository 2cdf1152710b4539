"""`/v1/score` and `/v1/rerank`: bodies to `Draft`s, scores to answers. Pure. Both are one task.

Forms: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#score-api and #re-rank-api, the latter as
of Cohere and Jina.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.fields import Strict
from penstock.api.intake import Draft
from penstock.errors import InvalidRequest
from penstock.event import Done
from penstock.http.openapi import OPTIONAL, AnswerModel
from penstock.tasks import SCORE

MAX_TEXTS = 1000

# Fields that no backend of ours honours.
REFUSED: dict[str, tuple[Any, ...]] = {
    "activation": (),
    "instruction": (),
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "mm_processor_kwargs": (),
    "priority": (0,),
    "rank_fields": (),
    "softmax": (),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "use_activation": (),
}

Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]

# vLLM has four pairs of names for the same.
PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class ScoreFields(Strict):
    model: str | None = Field(None, min_length=1, max_length=200, description="Default: the first model served.")
    user: str | None = Field(None, max_length=200)
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")


class ScoreBody(ScoreFields):
    """Texts to compare: `text_1` and `text_2`, or one of the other pairs of names for them.

    One text and many, or as many of each.
    """

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None


class DocumentBody(Strict):
    text: Text


class RerankBody(ScoreFields):
    """Documents to sort by how near they are to a query."""

    query: Text
    documents: list[Text | DocumentBody] = Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)
    top_n: int | None = Field(None, ge=0, description="How many to answer with. Default, and for 0: all.")
    return_documents: bool | None = Field(None, description="Whether the answer has their texts. Default: true.")

    def texts(self) -> tuple[str, ...]:
        return tuple([text if isinstance(text, str) else text.text for text in self.documents])


class ScoreUsage(AnswerModel):
    prompt_tokens: int
    total_tokens: int


class ScoreData(AnswerModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(AnswerModel):
    """A score for each pair, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreData]
    usage: ScoreUsage


class RerankDocument(AnswerModel):
    text: str


class RerankResult(AnswerModel):
    """`index`: its place among the documents. `document` is missing with `return_documents: false`."""

    index: int
    document: RerankDocument = OPTIONAL
    relevance_score: float


class RerankAnswer(AnswerModel):
    """The documents, the nearest first."""

    id: str
    model: str
    usage: ScoreUsage
    results: list[RerankResult]


def score_draft(body: ScoreBody) -> Draft:
    """Raises `InvalidRequest` unless there is one pair of names, and texts that pair."""
    named = {name for pair in PAIRS for name in pair if getattr(body, name) is not None}
    pair = next((pair for pair in PAIRS if named == set(pair)), None)
    if pair is None:
        raise InvalidRequest("Give 'text_1' and 'text_2', or 'queries' and 'documents'.", param="text_1")
    queries, inputs = (_texts(getattr(body, name)) for name in pair)
    if len(inputs) == 1:
        inputs *= len(queries)
    if len(queries) not in (1, len(inputs)):
        names = f"'{pair[0]}' and '{pair[1]}'"
        raise InvalidRequest(f"{names} must have as many texts, or one of them a single text.", param=pair[1])
    return _draft(body, queries, inputs)


def rerank_draft(body: RerankBody) -> Draft:
    return _draft(body, (body.query,), body.texts())


def _texts(texts: str | list[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _draft(body: ScoreFields, queries: tuple[str, ...], inputs: tuple[str, ...]) -> Draft:
    return Draft(
        model=body.model,
        task=SCORE,
        queries=queries,
        inputs=inputs,
        timeout_s=body.timeout_s,
        user=body.user or "",
    )


def scored(scores: Sequence[float], end: Done, request_id: str, model: str, created: int) -> dict[str, Any]:
    """A `ScoreAnswer`."""
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    head = {"id": f"score-{request_id}", "object": "list", "created": created, "model": model}
    return head | {"data": data, "usage": _usage(end)}


def reranked(scores: Sequence[float], end: Done, request_id: str, model: str, body: RerankBody) -> dict[str, Any]:
    """A `RerankAnswer`. Documents with the same score stay in their order."""
    ranks = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    texts = body.texts()
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in ranks]
    if body.return_documents is not False:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    return {"id": f"rerank-{request_id}", "model": model, "usage": _usage(end), "results": results}


def _usage(end: Done) -> dict[str, int]:
    return {"prompt_tokens": end.usage.prompt_tokens, "total_tokens": end.usage.prompt_tokens}
