"""`POST /v1/embeddings`: its body to a `Draft`, vectors to its answer. All but `EmbeddingResponse` is pure.

Form: https://platform.openai.com/docs/api-reference/embeddings. One request is one job, with a token for each input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from penstock.api.answer import AnswerResponse
from penstock.api.fields import MAX_INPUTS, Strict, TokenIdList, texts_of
from penstock.api.intake import Draft
from penstock.event import Done
from penstock.rich_token import RichToken, decode_vector

MAX_ON_LOOP = 16  # vectors that are written as numbers on the event loop: a millisecond or two

EmbeddingInput = Annotated[str, Field(min_length=1)]


class EmbeddingBody(Strict):
    """Texts, or their token ids, to embed. Form: https://platform.openai.com/docs/api-reference/embeddings/create."""

    input: (
        EmbeddingInput
        | Annotated[list[EmbeddingInput], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | TokenIdList
        | Annotated[list[TokenIdList], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    ) = Field(description=f"A text, or up to {MAX_INPUTS}; by model, a list of token ids for each.")
    model: str | None = Field(None, min_length=1, max_length=200, description="Default: the first model served.")
    dimensions: int | None = Field(None, ge=1, le=65_536, description="Of each vector; by model.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="Default: float.")
    user: str | None = Field(None, max_length=200)
    timeout_s: float | None = Field(None, ge=1, description="Penstock's own: seconds until it is given up.")


def draft_of(body: EmbeddingBody) -> Draft:
    return Draft(
        model=body.model,
        inputs=tuple(texts_of(body.input)),
        sampling={"dimensions": body.dimensions},
        timeout_s=body.timeout_s,
        user=body.user or "",
    )


class EmbeddingResponse(AnswerResponse):
    """The vectors as numbers, or, with `is_base64`, as they travelled."""

    is_base64 = False

    async def make_whole(self, ends: Sequence[Done]) -> bytes:
        """Many vectors as numbers are made in a thread: they take as long as thousands of tokens."""
        if self.is_base64 or len(self.stream.tokens) <= MAX_ON_LOOP:
            return self.whole(ends)
        return await asyncio.to_thread(self.whole, ends)

    def whole(self, ends: Sequence[Done]) -> bytes:
        (end,) = ends
        vectors = [token.embedding for token in self.stream.tokens if isinstance(token, RichToken)]
        # Each by itself, so that the interpreter may be given to the event loop in between.
        encode = msgspec.json.encode
        data: list[dict[str, Any]] = [
            {
                "object": "embedding",
                "index": index,
                "embedding": text if self.is_base64 else msgspec.Raw(encode(decode_vector(text))),
            }
            for index, text in enumerate(vectors)
        ]
        usage = {"prompt_tokens": end.usage.prompt_tokens, "total_tokens": end.usage.prompt_tokens}
        return msgspec.json.encode({"object": "list", "data": data, "model": self.stream.job.model, "usage": usage})
