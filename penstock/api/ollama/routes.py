"""The routes of Ollama's API over one gateway."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from penstock import errors
from penstock.api.answer import AnswerResponse
from penstock.api.answer_fields import timings
from penstock.api.callers import authenticate
from penstock.api.dialects import begin
from penstock.api.hints import Api, taken
from penstock.api.intake import Draft, Received, admit_and_submit, receive
from penstock.api.ollama.answers import (
    CHAT_LINES,
    GENERATE_LINES,
    LINES,
    OllamaChatAnswer,
    OllamaDetails,
    OllamaEmbedAnswer,
    OllamaEmbeddingAnswer,
    OllamaGenerateAnswer,
    OllamaModelAnswer,
    OllamaModelList,
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
from penstock.api.ollama.dialect import OLLAMA
from penstock.api.ollama.lines import Lines, lines_of, loaded, nanoseconds, stamp
from penstock.api.opened import Opened
from penstock.errors import InvalidRequest, PenstockError
from penstock.event import Done, Terminal
from penstock.fleet import Capabilities
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader
from penstock.http.edge import Call
from penstock.http.openapi import SUBMIT_FAILURES, AnswerModel, add_route, answer_of
from penstock.rich_token import RichToken, Token, decode_vector

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
_Asked = TypeVar("_Asked", OllamaChatBody, OllamaGenerateBody)
_FORMS = "The whole answer; or, unless `stream` is false, its lines."
_DETAILS = OllamaDetails(parent_model="", format="", family="", families=[], parameter_size="", quantization_level="")


class OllamaAPI:
    """See the head of this file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.started_at = time.time()

    def router(self) -> APIRouter:
        router = APIRouter(tags=["ollama"])
        add = partial(add_route, router)
        known = (errors.Unauthorized, errors.RateLimited)
        asked = (*known, errors.SlowBody, errors.BodyTooLarge, errors.UnsupportedMediaType, errors.Overloaded)
        of_one = (*asked, errors.ModelNotFound, errors.ModelNotAllowed)
        chat, text = (
            answer_of(OllamaChatAnswer, CHAT_LINES, _FORMS),
            answer_of(OllamaGenerateAnswer, GENERATE_LINES, _FORMS),
        )
        add("POST", CHAT, self.chat, "ollama_chat", chat, SUBMIT_FAILURES)
        add("POST", GENERATE, self.generate, "ollama_generate", text, SUBMIT_FAILURES)
        add("POST", EMBED, self.embed, "ollama_embed", answer_of(OllamaEmbedAnswer), SUBMIT_FAILURES)
        vector = answer_of(OllamaEmbeddingAnswer)
        add("POST", EMBEDDINGS, self.embeddings, "ollama_embeddings", vector, SUBMIT_FAILURES)
        add("POST", SHOW, self.show, "ollama_show", answer_of(OllamaShowAnswer), of_one)
        add("GET", TAGS, self.tags, "ollama_tags", answer_of(OllamaModelList), known)
        add("GET", RUNNING, self.running, "ollama_ps", answer_of(OllamaRunningList), known)
        add("GET", VERSION, self.version, "ollama_version", answer_of(OllamaVersionAnswer), known)
        return router

    async def chat(self, request: Request) -> Response:
        """Answer a conversation: Ollama's chat."""
        return await self._answer(request, begin(request, CHAT, OLLAMA), OllamaChatBody, chat_draft_of, is_chat=True)

    async def generate(self, request: Request) -> Response:
        """Answer a prompt: Ollama's generate."""
        call = begin(request, GENERATE, OLLAMA)
        return await self._answer(request, call, OllamaGenerateBody, generate_draft_of, is_chat=False)

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
        shown = OllamaShowAnswer(
            license="",
            modelfile="",
            parameters="",
            template="",
            details=_DETAILS,
            model_info={},
            capabilities=_abilities(can),
            modified_at=stamp(self.started_at),
        )
        return _json(shown)

    async def tags(self, request: Request) -> Response:
        """The models that live workers serve and the caller may use."""
        caller = await authenticate(self.gateway, request, begin(request, TAGS, OLLAMA))
        return _json(OllamaModelList(models=self._models(caller)))

    async def running(self, request: Request) -> Response:
        """The same models: all of them are loaded."""
        caller = await authenticate(self.gateway, request, begin(request, RUNNING, OLLAMA))
        models = self._models(caller)
        running = [OllamaRunningAnswer(**dict(model), size_vram=0, expires_at=NEVER) for model in models]
        return _json(OllamaRunningList(models=running))

    async def version(self, request: Request) -> Response:
        """The version of Ollama's API that is spoken here. Penstock's own is at `/version`."""
        await authenticate(self.gateway, request, begin(request, VERSION, OLLAMA))
        return _json(OllamaVersionAnswer(version=SPOKEN))

    # ── below the routes ─────────────────────────────────────────────────────────────────────────────────────────

    async def _receive(self, request: Request, call: Call, body: type[_Body], api: Api = "ollama") -> Received[_Body]:
        return await receive(self.gateway, request, call, body, lambda data: taken(data, api, REFUSED))

    async def _answer(
        self, request: Request, call: Call, kind: type[_Asked], draft_of: Callable[[_Asked], Draft], *, is_chat: bool
    ) -> Response:
        received = await self._receive(request, call, kind)
        body = received.body
        body.model = self._named(body.model)
        if body.is_load:
            return self._loaded(received.caller, body.model, is_chat=is_chat, is_stream=body.is_stream)
        opened = await admit_and_submit(self.gateway, call, received, [await received.into(draft_of)])
        return OllamaResponse(opened, is_stream=body.is_stream, is_chat=is_chat)

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

    def _models(self, caller: Caller) -> list[OllamaModelAnswer]:
        names = [name for name in sorted(self.gateway.pool.models) if caller.key is None or caller.key.may_use(name)]
        at = stamp(self.started_at)
        return [
            OllamaModelAnswer(
                name=name,
                model=name,
                modified_at=at,
                size=0,
                digest=hashlib.sha256(name.encode()).hexdigest(),
                details=_DETAILS,
            )
            for name in names
        ]


class OllamaResponse(AnswerResponse):
    """A chat or a generated text, whole or line by line."""

    stream_type = (b"content-type", LINES.encode())

    def __init__(self, opened: Opened, *, is_stream: bool, is_chat: bool) -> None:
        super().__init__(opened, is_stream=is_stream)
        self.is_chat = is_chat
        self.lines = Lines(self.stream.job, is_chat=is_chat)

    def whole(self, ends: Sequence[Done]) -> bytes:
        (end,) = ends
        return self._read().whole(end, timings(self.stream))

    def failure(self, end: Terminal) -> PenstockError | None:
        return self._read().failure(end)

    def keepalive(self) -> bytes:
        return self.lines.keepalive()

    def token_frames(self, reader: Reader, first: int, tokens: list[Token]) -> list[bytes]:
        return self.lines.all_of(tokens)

    def end_frame(self, reader: Reader, end: Terminal) -> bytes:
        return b"".join(self.lines.end(end, timings(self.stream)))

    def _read(self) -> Lines:
        return lines_of(self.stream.job, self.stream.tokens, is_chat=self.is_chat)


class OllamaEmbedResponse(AnswerResponse):
    """Vectors of the inputs; with `is_single` the older form, of one."""

    is_single = False

    def whole(self, ends: Sequence[Done]) -> bytes:
        (end,) = ends
        stream = self.stream
        vectors = [decode_vector(token.embedding) for token in stream.tokens if isinstance(token, RichToken)]
        if self.is_single:
            return msgspec.json.encode({"embedding": vectors[0]})
        times = timings(stream)
        return msgspec.json.encode(
            {
                "model": stream.job.model,
                "embeddings": vectors,
                "total_duration": nanoseconds(times["total_ms"]),
                "load_duration": nanoseconds(times["queue_ms"]),
                "prompt_eval_count": end.usage.prompt_tokens,
            }
        )


def _abilities(can: Capabilities) -> list[str]:
    """In Ollama's words."""
    named = {"tools": "tools", "vision": "images", "thinking": "reasoning_effort"}
    able = [word for word, field in named.items() if field in can.accepts]
    return [*(["completion"] if can.generates else []), *(["embedding"] if can.embeds else []), *able]


def _json(answer: AnswerModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json", headers={"cache-control": "no-store"})
