"""The routes of OpenAI's APIs over one gateway: chat completions, completions, embeddings and models."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from penstock import errors
from penstock.api.callers import authenticate
from penstock.api.dialects import OPENAI, begin
from penstock.api.hints import taken
from penstock.api.intake import admit_and_submit, receive
from penstock.api.openai import chat, completions
from penstock.api.openai.answers import (
    CHAT_EVENTS,
    COMPLETION_EVENTS,
    ChatCompletion,
    EmbeddingList,
    ModelAnswer,
    ModelList,
    TextCompletion,
)
from penstock.api.openai.choices import ChoicesResponse
from penstock.api.openai.embeddings import EmbeddingBody, EmbeddingResponse, draft_of
from penstock.errors import ModelNotFound
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.json_response import json_response
from penstock.http.openapi import SUBMIT_FAILURES, add_route, answer_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"

_FORMS = "The whole answer; or, with `stream: true`, its chunks, and then `[DONE]`."


class OpenAIAPI:
    """See the head of this file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.started_at = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter(tags=["openai"])
        add = partial(add_route, router)
        chat = answer_of(ChatCompletion, CHAT_EVENTS, _FORMS)
        completion = answer_of(TextCompletion, COMPLETION_EVENTS, _FORMS)
        add("POST", CHAT, self.chat, "chat_completions_create", chat, SUBMIT_FAILURES)
        add("POST", COMPLETIONS, self.completions, "completions_create", completion, SUBMIT_FAILURES)
        add("POST", EMBEDDINGS, self.embeddings, "embeddings_create", answer_of(EmbeddingList), SUBMIT_FAILURES)
        listed = (errors.Unauthorized, errors.RateLimited)
        shown = (*listed, errors.ModelNotFound, errors.ModelNotAllowed)
        add("GET", MODELS, self.models, "models_list", answer_of(ModelList), listed)
        add("GET", MODELS + "/{model:path}", self.model, "models_retrieve", answer_of(ModelAnswer), shown)
        return router

    async def chat(self, request: Request) -> Response:
        """Answer a conversation: OpenAI's chat completions."""
        call = begin(request, CHAT, OPENAI)
        received = await receive(
            self.gateway, request, call, chat.ChatBody, lambda data: taken(data, "chat", chat.REFUSED), "chat"
        )
        body = received.body
        opened = await admit_and_submit(self.gateway, call, received, await received.into(chat.drafts_of))
        model = opened.reader.stream.job.model
        form = chat.ChatForm(
            call.id,
            model,
            int(time.time()),
            includes_usage=body.includes_usage,
            reasoning_field=self.gateway.settings.reasoning_field,
        )
        return ChoicesResponse(opened, form, is_stream=bool(body.stream))

    async def completions(self, request: Request) -> Response:
        """Go on from a text: OpenAI's older completions."""
        call = begin(request, COMPLETIONS, OPENAI)
        kind = completions.CompletionBody
        received = await receive(
            self.gateway,
            request,
            call,
            kind,
            lambda data: taken(data, "completions", completions.REFUSED),
            "completions",
        )
        body = received.body
        opened = await admit_and_submit(self.gateway, call, received, await received.into(completions.drafts_of))
        model = opened.reader.stream.job.model
        form = completions.CompletionForm(call.id, model, int(time.time()), includes_usage=body.includes_usage)
        num_prompts = len(opened.readers) // (body.n or 1)
        return ChoicesResponse(opened, form, is_stream=bool(body.stream), num_prompts=num_prompts)

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts."""
        call = begin(request, EMBEDDINGS, OPENAI)
        received = await receive(self.gateway, request, call, EmbeddingBody)
        opened = await admit_and_submit(self.gateway, call, received, [await received.into(draft_of)])
        answer = EmbeddingResponse(opened, is_stream=False)
        answer.is_base64 = received.body.encoding_format == "base64"
        return answer

    async def models(self, request: Request) -> Response:
        """The models that live workers serve and the caller may use."""
        caller = await authenticate(self.gateway, request, begin(request, MODELS, OPENAI))
        names = [name for name in sorted(self.gateway.pool.models) if _may_use(caller, name)]
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return json_response(
            {"object": "list", "data": [self._shown(name) for name in names], "has_more": False, **ends}
        )

    async def model(self, request: Request, model: str) -> Response:
        """One of them."""
        caller = await authenticate(self.gateway, request, begin(request, MODELS, OPENAI))
        if not self.gateway.pool.models:
            raise ModelNotFound("No model is being served.", param="model")
        name, _ = self.gateway.admission.choose_model(model, caller)
        return json_response(self._shown(name))

    def _shown(self, name: str) -> dict[str, Any]:
        """`created` is when this gateway started: the date of the model is not known."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started_at))
        openai = {"id": name, "object": "model", "created": self.started_at, "owned_by": "penstock"}
        return openai | {"type": "model", "display_name": name, "created_at": at}


def _may_use(caller: Caller, model: str) -> bool:
    return caller.key is None or caller.key.may_use(model)
