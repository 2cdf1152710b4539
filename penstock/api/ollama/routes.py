"""The routes of Ollama's API over one gateway."""

from __future__ import annotations

import hashlib
import time
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from penstock import errors
from penstock.api.callers import authenticate
from penstock.api.dialects import begin
from penstock.api.hints import Api, taken
from penstock.api.intake import Received, admit_and_submit, receive
from penstock.api.ollama.answers import (
    LINES,
    OllamaChatAnswer,
    OllamaEmbedAnswer,
    OllamaEmbeddingAnswer,
    OllamaEmbedResponse,
    OllamaGenerateAnswer,
    OllamaModelAnswer,
    OllamaModelList,
    OllamaResponse,
    OllamaRunningAnswer,
    OllamaRunningList,
    OllamaShowAnswer,
    OllamaVersionAnswer,
)
from penstock.api.ollama.body import (
    REFUSED,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaGenerateBody,
    OllamaShowBody,
    chat_draft_of,
    generate_draft_of,
)
from penstock.api.ollama.dialect import OLLAMA, OllamaErrorAnswer
from penstock.api.ollama.lines import loaded, stamp
from penstock.errors import InvalidRequest
from penstock.fleet import Capabilities
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.http.edge import Call
from penstock.http.openapi import SUBMIT_ERRORS, error_responses

CHAT = "/api/chat"
GENERATE = "/api/generate"
EMBED = "/api/embed"
EMBEDDINGS = "/api/embeddings"
SHOW = "/api/show"
TAGS = "/api/tags"
RUNNING = "/api/ps"
VERSION = "/api/version"

SPOKEN = "0.12.11"  # the release of Ollama whose API this is: clients ask for it to know what they may send
NEVER = "9999-12-31T23:59:59Z"

_Body = TypeVar("_Body", bound=BaseModel)
_Documented = dict[int | str, dict[str, Any]]


class OllamaAPI:
    """See the head of this file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.started_at = time.time()

    def router(self) -> APIRouter:
        router = APIRouter()
        refused = _in_its_form(error_responses(errors.Unauthorized, errors.RateLimited))
        asked = refused | _in_its_form(
            error_responses(errors.InvalidRequest, errors.UnsupportedMediaType, errors.ModelNotFound)
        )
        submitted = _in_its_form(SUBMIT_ERRORS)

        def add(path: str, route: Any, method: str, answer: type[BaseModel], others: _Documented) -> None:
            kind: dict[str, Any] = {"model": answer, "description": answer.__doc__ or "The answer in Ollama's form."}
            if path in (CHAT, GENERATE):
                kind["content"] = {LINES: {"schema": {"$ref": f"#/components/schemas/{answer.__name__}"}}}
            router.add_api_route(path, route, methods=[method], response_model=None, responses={200: kind, **others})

        add(CHAT, self.chat, "POST", OllamaChatAnswer, submitted)
        add(GENERATE, self.generate, "POST", OllamaGenerateAnswer, submitted)
        add(EMBED, self.embed, "POST", OllamaEmbedAnswer, submitted)
        add(EMBEDDINGS, self.embeddings, "POST", OllamaEmbeddingAnswer, submitted)
        add(SHOW, self.show, "POST", OllamaShowAnswer, asked)
        add(TAGS, self.tags, "GET", OllamaModelList, refused)
        add(RUNNING, self.running, "GET", OllamaRunningList, refused)
        add(VERSION, self.version, "GET", OllamaVersionAnswer, refused)
        return router

    async def chat(self, request: Request) -> Response:
        """Answer a conversation: Ollama's chat."""
        call = begin(request, CHAT, OLLAMA)
        received = await self._receive(request, call, OllamaChatBody)
        body = received.body
        body.model = self._named(body.model)
        if body.is_load:
            return self._loaded(received.caller, body.model, is_chat=True, is_stream=body.is_stream)
        opened = await admit_and_submit(self.gateway, call, received, [await received.into(chat_draft_of)])
        return OllamaResponse(opened, is_stream=body.is_stream, is_chat=True)

    async def generate(self, request: Request) -> Response:
        """Answer a prompt: Ollama's generate."""
        call = begin(request, GENERATE, OLLAMA)
        received = await self._receive(request, call, OllamaGenerateBody)
        body = received.body
        body.model = self._named(body.model)
        if body.is_load:
            return self._loaded(received.caller, body.model, is_chat=False, is_stream=body.is_stream)
        opened = await admit_and_submit(self.gateway, call, received, [await received.into(generate_draft_of)])
        return OllamaResponse(opened, is_stream=body.is_stream, is_chat=False)

    async def embed(self, request: Request) -> Response:
        """Vectors of texts."""
        return await self._embed(request, begin(request, EMBED, OLLAMA), OllamaEmbedBody)

    async def embeddings(self, request: Request) -> Response:
        """The vector of a text, in the older form."""
        answer = await self._embed(request, begin(request, EMBEDDINGS, OLLAMA), OllamaEmbeddingsBody)
        answer.is_single = True
        return answer

    async def show(self, request: Request) -> Response:
        """What a model can do."""
        received = await self._receive(request, begin(request, SHOW, OLLAMA), OllamaShowBody)
        asked = self._named(received.body.model or received.body.name)
        if asked is None:
            raise InvalidRequest("'model' is required.", param="model")
        _, can = self.gateway.admission.choose_model(asked, received.caller)
        return _json(OllamaShowAnswer(capabilities=_abilities(can), modified_at=stamp(self.started_at)))

    async def tags(self, request: Request) -> Response:
        """The models that live workers serve and the caller may use."""
        caller = await authenticate(self.gateway, request, begin(request, TAGS, OLLAMA))
        return _json(OllamaModelList(models=[OllamaModelAnswer(**one) for one in self._models(caller)]))

    async def running(self, request: Request) -> Response:
        """The same models: all of them are loaded."""
        caller = await authenticate(self.gateway, request, begin(request, RUNNING, OLLAMA))
        models = [OllamaRunningAnswer(expires_at=NEVER, **one) for one in self._models(caller)]
        return _json(OllamaRunningList(models=models))

    async def version(self, request: Request) -> Response:
        """The version of Ollama's API that is spoken here. Penstock's own is at `/version`."""
        await authenticate(self.gateway, request, begin(request, VERSION, OLLAMA))
        return _json(OllamaVersionAnswer(version=SPOKEN))

    # ── below the routes ─────────────────────────────────────────────────────────────────────────────────────────

    async def _receive(self, request: Request, call: Call, body: type[_Body], api: Api = "ollama") -> Received[_Body]:
        return await receive(self.gateway, request, call, body, lambda data: taken(data, api, REFUSED))

    async def _embed(
        self, request: Request, call: Call, kind: type[OllamaEmbedBody | OllamaEmbeddingsBody]
    ) -> OllamaEmbedResponse:
        received = await self._receive(request, call, kind, "ollama-embed")
        received.body.model = self._named(received.body.model)
        return OllamaEmbedResponse(
            await admit_and_submit(self.gateway, call, received, [received.body.draft()]), is_stream=False
        )

    def _named(self, model: str | None) -> str | None:
        """Ollama's clients may add the tag of the newest version to a name."""
        plain = (model or "").removesuffix(":latest")
        return plain if plain in self.gateway.pool.models else model

    def _loaded(self, caller: Caller, model: str | None, *, is_chat: bool, is_stream: bool) -> Response:
        name, _ = self.gateway.admission.choose_model(model, caller)
        body = loaded(name, time.time(), is_chat=is_chat)
        return Response(body, media_type=LINES if is_stream else "application/json")

    def _models(self, caller: Caller) -> list[dict[str, Any]]:
        names = [name for name in sorted(self.gateway.pool.models) if caller.key is None or caller.key.may_use(name)]
        at = stamp(self.started_at)
        return [
            {"name": name, "model": name, "modified_at": at, "digest": hashlib.sha256(name.encode()).hexdigest()}
            for name in names
        ]


def _abilities(can: Capabilities) -> list[str]:
    """In Ollama's words."""
    named = {"tools": "tools", "vision": "images", "thinking": "reasoning_effort"}
    able = [word for word, field in named.items() if field in can.accepts]
    return [*(["completion"] if can.generates else []), *(["embedding"] if can.embeds else []), *able]


def _in_its_form(documented: _Documented) -> _Documented:
    return {status: one | {"model": OllamaErrorAnswer} for status, one in documented.items()}


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json", headers={"cache-control": "no-store"})
