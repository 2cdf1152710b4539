"""Every API that a gateway speaks, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from pydantic import BaseModel

from penstock.api.admin import AdminAPI
from penstock.api.anthropic.answers import AnthropicErrorAnswer
from penstock.api.anthropic.body import MessagesBody
from penstock.api.anthropic.count import CountBody
from penstock.api.anthropic.dialect import ANTHROPIC
from penstock.api.anthropic.routes import COUNT_TOKENS, MESSAGES, AnthropicAPI
from penstock.api.native import ENDPOINT, NativeAPI
from penstock.api.ollama import routes as ollama_routes
from penstock.api.ollama.answers import OllamaErrorAnswer
from penstock.api.ollama.body import (
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaGenerateBody,
    OllamaShowBody,
)
from penstock.api.ollama.dialect import OLLAMA
from penstock.api.ollama.routes import OllamaAPI
from penstock.api.openai.chat import ChatBody
from penstock.api.openai.completions import CompletionBody
from penstock.api.openai.embeddings import EmbeddingBody
from penstock.api.openai.routes import CHAT, COMPLETIONS, EMBEDDINGS, OpenAIAPI
from penstock.api.requests import EVENTS_END, RequestsAPI
from penstock.api.requests import PATH as REQUESTS
from penstock.api.responses.body import ResponseBody
from penstock.api.responses.routes import RESPONSES, ResponsesAPI
from penstock.api.responses.stored import StoredResponsesAPI
from penstock.api.vllm.routes import (
    ALSO_RERANK,
    ALSO_SCORE,
    DETOKENIZE,
    RERANK,
    SCORE,
    TOKENIZE,
    TOKENIZER_INFO,
    VllmAPI,
)
from penstock.api.vllm.scores import RerankBody, ScoreBody
from penstock.api.vllm.tokenizer import DetokenizeBody, TokenizeBody, TokenizerInfoBody
from penstock.gateway.gateway import Gateway
from penstock.http.edge import Dialect, Handler
from penstock.http.openapi import ErrorAnswer


@dataclass(frozen=True, slots=True)
class ApiTable:
    """`bodies`: what the OpenAPI page shows of POSTs, by (path, method). `hot`: the POSTs that `Edge` calls itself.

    `take_up`: a request's events, which `Edge` calls itself, too: when a gateway dies, all its clients ask another
    one for them in the same instant.
    """

    routers: tuple[APIRouter, ...]
    bodies: Mapping[tuple[str, str], type[BaseModel]]
    hot: Mapping[str, Handler]
    take_up: Handler

    def handler(self, method: str, path: str) -> Handler | None:
        """The handler that `Edge` calls without the framework's routing; None for other routes."""
        if method == "POST":
            return self.hot.get(path)
        if method == "GET" and path.endswith(EVENTS_END) and path.startswith(REQUESTS):
            return self.take_up
        return None

    def dialect(self, path: str) -> Dialect | None:
        """In whose form `path` is answered, with or without a route: SDKs of Anthropic's and Ollama's read no other."""
        if path.startswith("/api/"):
            return OLLAMA
        return ANTHROPIC if path.startswith(MESSAGES) and path[len(MESSAGES) :][:1] in ("", "/") else None

    def envelope(self, path: str) -> type[BaseModel]:
        """The form of the errors at `path`."""
        dialect = self.dialect(path)
        return ErrorAnswer if dialect is None else OllamaErrorAnswer if dialect is OLLAMA else AnthropicErrorAnswer


def apis_of(gateway: Gateway) -> ApiTable:
    native, openai = NativeAPI(gateway), OpenAIAPI(gateway)
    responses, anthropic = ResponsesAPI(gateway), AnthropicAPI(gateway)
    requests, ollama = RequestsAPI(gateway), OllamaAPI(gateway)
    stored, admin = StoredResponsesAPI(gateway), AdminAPI(gateway)
    every = (native, openai, responses, stored, anthropic, ollama, VllmAPI(gateway), requests, admin)
    return ApiTable(
        routers=tuple(api.router() for api in every),
        bodies={
            (ENDPOINT, "post"): native.body,
            (CHAT, "post"): ChatBody,
            (COMPLETIONS, "post"): CompletionBody,
            (EMBEDDINGS, "post"): EmbeddingBody,
            (RESPONSES, "post"): ResponseBody,
            (MESSAGES, "post"): MessagesBody,
            (ollama_routes.CHAT, "post"): OllamaChatBody,
            (ollama_routes.GENERATE, "post"): OllamaGenerateBody,
            (ollama_routes.EMBED, "post"): OllamaEmbedBody,
            (ollama_routes.EMBEDDINGS, "post"): OllamaEmbeddingsBody,
            (ollama_routes.SHOW, "post"): OllamaShowBody,
            (COUNT_TOKENS, "post"): CountBody,
            (TOKENIZE, "post"): TokenizeBody,
            (DETOKENIZE, "post"): DetokenizeBody,
            (TOKENIZER_INFO, "post"): TokenizerInfoBody,
            **{(path, "post"): RerankBody for path in (RERANK, *ALSO_RERANK)},
            **{(path, "post"): ScoreBody for path in (SCORE, *ALSO_SCORE)},
        },
        hot={
            ENDPOINT: native.generate,
            CHAT: openai.chat,
            COMPLETIONS: openai.completions,
            RESPONSES: responses.create,
            MESSAGES: anthropic.messages,
            ollama_routes.CHAT: ollama.chat,
            ollama_routes.GENERATE: ollama.generate,
        },
        take_up=requests.take_up,
    )
