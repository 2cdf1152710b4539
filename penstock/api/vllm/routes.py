"""The routes of vLLM over one gateway: its tokenizer's, scores and rerank. Errors have OpenAI's form, as there."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from penstock import errors
from penstock.api.callers import authenticate
from penstock.api.dialects import OPENAI, begin
from penstock.api.extras import NO_EXTRAS
from penstock.api.fields import without_refused
from penstock.api.intake import Received, admit_and_submit, receive
from penstock.api.results import ResultResponse
from penstock.api.vllm import scores, tokenizer
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.openapi import SUBMIT_FAILURES, AnswerModel, add_route, answer_of
from penstock.tasks import read_scores

TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
TOKENIZER_INFO = "/tokenizer_info"
RERANK = "/v1/rerank"
SCORE = "/v1/score"
# Without the version, and the path of Cohere's newer clients: also vLLM's own.
ALSO_RERANK = ("/rerank", "/v2/rerank")
ALSO_SCORE = ("/score",)

TASK_FAILURES = (*SUBMIT_FAILURES, errors.UnsupportedTask)


class VllmAPI:
    """See the head of this file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def router(self) -> APIRouter:
        router = APIRouter(tags=["vllm"])

        def add(path: str, handler: Any, name: str, answer: type[AnswerModel], method: str = "POST") -> None:
            add_route(router, method, path, handler, name, answer_of(answer), TASK_FAILURES)

        add(TOKENIZE, self.tokenize, "tokenize", tokenizer.TokenizeAnswer)
        add(DETOKENIZE, self.detokenize, "detokenize", tokenizer.DetokenizeAnswer)
        add(TOKENIZER_INFO, self.tokenizer_info, "tokenizer_info", tokenizer.TokenizerInfoAnswer)
        shown = tokenizer.TokenizerInfoAnswer
        add(TOKENIZER_INFO, self.first_tokenizer_info, "tokenizer_info_retrieve", shown, "GET")
        for number, path in enumerate((RERANK, *ALSO_RERANK), 1):
            add(path, self.rerank, "rerank" if number == 1 else f"rerank_{number}", scores.RerankAnswer)
        for number, path in enumerate((SCORE, *ALSO_SCORE), 1):
            add(path, self.score, "score" if number == 1 else f"score_{number}", scores.ScoreAnswer)
        return router

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text or of a conversation: vLLM's."""
        gateway, call = self.gateway, begin(request, TOKENIZE, OPENAI)
        kind = tokenizer.TokenizeBody
        received = await receive(gateway, request, call, kind, lambda data: without_refused(data, tokenizer.REFUSED))
        opened = await admit_and_submit(gateway, call, received, [await received.into(tokenizer.tokenize_draft)])
        return ResultResponse(opened, lambda tokens, end: tokenizer.tokenized(tokens))

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids: vLLM's."""
        gateway, call = self.gateway, begin(request, DETOKENIZE, OPENAI)
        received = await receive(gateway, request, call, tokenizer.DetokenizeBody)
        opened = await admit_and_submit(gateway, call, received, [await received.into(tokenizer.detokenize_draft)])
        return ResultResponse(opened, lambda tokens, end: tokenizer.detokenized(tokens))

    async def tokenizer_info(self, request: Request) -> Response:
        """The configuration of a model's tokenizer."""
        gateway, call = self.gateway, begin(request, TOKENIZER_INFO, OPENAI)
        received = await receive(gateway, request, call, tokenizer.TokenizerInfoBody)
        return await self._info(request, received)

    async def first_tokenizer_info(
        self, request: Request, model: Annotated[str | None, Query(min_length=1, max_length=200)] = None
    ) -> Response:
        """The same: vLLM's, with the model in the query. Default: the first model served."""
        call = begin(request, TOKENIZER_INFO, OPENAI)
        caller = await authenticate(self.gateway, request, call)
        return await self._info(request, _of_query(tokenizer.TokenizerInfoBody(model=model), caller))

    async def _info(self, request: Request, received: Received[tokenizer.TokenizerInfoBody]) -> Response:
        draft = tokenizer.info_draft(received.body)
        opened = await admit_and_submit(self.gateway, begin(request, TOKENIZER_INFO, OPENAI), received, [draft])
        return ResultResponse(opened, lambda tokens, end: tokenizer.info(tokens))

    async def rerank(self, request: Request) -> Response:
        """Documents sorted by how near they are to a query: Cohere's and Jina's, as vLLM has it."""
        gateway, call = self.gateway, begin(request, RERANK, OPENAI)
        kind = scores.RerankBody
        received = await receive(gateway, request, call, kind, lambda data: without_refused(data, scores.REFUSED))
        opened = await admit_and_submit(gateway, call, received, [await received.into(scores.rerank_draft)])
        job, body = opened.reader.stream.job, received.body
        return ResultResponse(
            opened,
            lambda tokens, end: scores.reranked(read_scores(tokens, len(job.inputs)), end, call.id, job.model, body),
        )

    async def score(self, request: Request) -> Response:
        """How near texts are to each other, pair by pair: vLLM's."""
        gateway, call, created = self.gateway, begin(request, SCORE, OPENAI), int(time.time())
        kind = scores.ScoreBody
        received = await receive(gateway, request, call, kind, lambda data: without_refused(data, scores.REFUSED))
        opened = await admit_and_submit(gateway, call, received, [await received.into(scores.score_draft)])
        job = opened.reader.stream.job
        return ResultResponse(
            opened,
            lambda tokens, end: scores.scored(read_scores(tokens, len(job.inputs)), end, call.id, job.model, created),
        )


def _of_query(body: tokenizer.TokenizerInfoBody, caller: Caller) -> Received[tokenizer.TokenizerInfoBody]:
    return Received(body=body, extras=NO_EXTRAS, caller=caller, key=None, body_hash="", num_bytes=0, _large=None)
