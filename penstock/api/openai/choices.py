"""How one or several choices become one HTTP answer: how their frames interleave, and how their usage adds up.

Each choice is a request of its own, with its own job; several of them share one connection and one `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.api.answer import AnswerResponse
from penstock.api.answer_fields import usage
from penstock.api.openai.form import Form
from penstock.api.opened import Opened
from penstock.event import Done, Terminal
from penstock.gateway.relay import Reader
from penstock.rich_token import Token, join


class ChoicesResponse(AnswerResponse):
    """One choice for each reader, whole or interleaved on one stream as their tokens come."""

    def __init__(self, opened: Opened, form: Form, *, is_stream: bool, num_prompts: int = 1) -> None:
        super().__init__(opened, is_stream=is_stream)
        self.form = form
        self.num_prompts = num_prompts
        for index, reader in enumerate(self.readers):
            reader.index = index
            form.job_ids[index] = reader.stream.job.id

    def whole(self, ends: Sequence[Done]) -> bytes:
        choices = [
            self.form.choice(reader.index, join(reader.stream.tokens), end.finish_reason)
            for reader, end in zip(self.readers, ends, strict=True)
        ]
        return self.form.whole(choices, self.usage())

    def token_frames(self, reader: Reader, first: int, tokens: list[Token]) -> list[bytes]:
        form, index = self.form, reader.index
        frames = [form.token(index, token) for token in tokens]
        return frames if first or not tokens else [*form.open(index), *frames]

    def end_frame(self, reader: Reader, end: Terminal) -> bytes:
        error = self.failure(end)
        if error is not None:
            return self.form.error(error)
        assert isinstance(end, Done)  # a failure has an error
        opening = b"" if reader.stream.tokens else b"".join(self.form.open(reader.index))
        return opening + self.form.finish(reader.index, end.finish_reason)

    def closing(self) -> bytes:
        return self.form.close(self.usage()) if self.error() is None else b""

    def usage(self) -> dict[str, int]:
        """The prompt of several answers to it counts once, as with OpenAI."""
        if len(self.readers) == 1 and isinstance(end := self.stream.end, Done):
            return usage(end)
        each = [usage(end) for reader in self.readers if isinstance(end := reader.stream.end, Done)]
        per_prompt = max(1, len(self.readers) // self.num_prompts)
        prompt = sum(one["prompt_tokens"] for one in each[::per_prompt])
        completion = sum(one["completion_tokens"] for one in each)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
