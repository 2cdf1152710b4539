"""The mock's embeddings: a unit vector for each input, a function of its text and of the number of dimensions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from penstock.job import Job
from penstock.rich_token import RichToken, Token, encode_vector


def embedding_of(job: Job) -> Callable[[int], Token]:
    """The function from the index of an input to its vector: eight numbers, or as many as `dimensions` asks for."""
    size = job.sampling.dimensions or 8

    def embedded(index: int) -> Token:
        key = str(job.inputs[index]).encode("utf-8", "surrogatepass")
        digest = hashlib.shake_128(key).digest(2 * size)
        raw = [int.from_bytes(digest[at : at + 2], "big") - 32767.5 for at in range(0, 2 * size, 2)]
        length = math.sqrt(sum(one * one for one in raw))
        return RichToken(embedding=encode_vector([one / length for one in raw]))

    return embedded
