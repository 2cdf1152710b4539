"""`penstock chat`: a conversation in the terminal, streamed; its answers survive the gateway that began them."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from penstock.cli.asides import Asides
from penstock.cli.flags import FAILED, exit_with, explain, print_error
from penstock.cli.options import DEFAULT_URL, ApiKey, MaxTokens, Model, Temperature, Url
from penstock.cli.terminal import echo
from penstock.client import Client, Stream
from penstock.client.options import Options
from penstock.client.route import without_password
from penstock.errors import PenstockError

HELP = """/system TEXT   the system prompt; without TEXT: none
/model NAME    another model
/undo          forget the last question and its answer
/reset         forget the conversation
/exit          or Ctrl-D: leave. Ctrl-C stops an answer."""


@exit_with
def chat(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Model = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system prompt.")] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
) -> int:
    """Talk with a model; lines from a pipe are questions one after the other."""
    # Events of the queue make the server answer at once, so that Ctrl-C knows from the start what to cancel.
    options: Options = {
        "model": model, "max_tokens": max_tokens, "temperature": temperature, "queue_events": True
    }  # fmt: skip
    asides = Asides()
    with Client(*url.split(","), api_key=api_key, on_retry=asides.on_retry) as client, asides.warnings():
        conversation = Conversation(client, options, system, asides)
        if sys.stdin.isatty():
            conversation.greet(url)
        return conversation.run()


class Conversation:
    """One conversation. `turns`: the messages so far, without the system's."""

    def __init__(self, client: Client, options: Options, system: str, asides: Asides) -> None:
        self._client = client
        self._options = options
        self._system = system
        self._asides = asides
        self._turns: list[dict[str, str]] = []
        self._num_failed = 0

    def greet(self, url: str) -> None:
        """Raises the server's error, so that a wrong URL or key is known before the first question."""
        names = [model.id for model in self._client.models()]
        model = self._options.get("model")
        chosen = f"model {model}" if model else f"model {names[0]}" if len(names) == 1 else "the server's first model"
        where = ", ".join(without_password(each.strip()) for each in url.split(","))
        self._asides.line(f"{chosen} at {where}, which serves {', '.join(names) or 'none at present'}")
        self._asides.line("/help lists the commands; Ctrl-D leaves.")

    def run(self) -> int:
        is_person = sys.stdin.isatty()
        if is_person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` a history and keys to edit with
        while True:
            try:
                line = input("> " if is_person else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:  # a line that was begun is thrown away
                self._asides.line()
                continue
            if line in ("/exit", "/quit"):
                break
            if line.startswith("/"):
                self._obey(*line.partition(" ")[::2])
            elif line:
                self._ask(line)
        return FAILED if self._num_failed and not is_person else 0

    def _obey(self, name: str, rest: str) -> None:
        """A command of the conversation; each is answered with one line."""
        note = self._asides.note
        if name == "/reset":
            self._turns.clear()
            note("the conversation is cleared")
        elif name == "/undo":
            note("removed the last question" if self._turns else "nothing to undo")
            del self._turns[-2:]
        elif name == "/system":
            self._system = rest.strip()
            note("with this system prompt" if self._system else "without a system prompt")
        elif name == "/model":
            self._choose(rest.strip())
        elif name == "/help":
            self._asides.line(HELP)
        else:
            note(f"{name} is not a command")
            self._asides.line(HELP)

    def _choose(self, model: str) -> None:
        try:
            names = [each.id for each in self._client.models()]
        except PenstockError as error:
            print_error(explain(error))
            return
        if model and model not in names:
            self._num_failed += 1
            self._asides.note(f"the server does not serve {model}; it serves {', '.join(names) or 'none at present'}")
            return
        self._options["model"] = model or None
        self._asides.note(f"model {model}" if model else "the server's first model")

    def _ask(self, question: str) -> None:
        before = [{"role": "system", "content": self._system}] if self._system else []
        asked = {"role": "user", "content": question}
        stream = self._client.stream(messages=[*before, *self._turns, asked], **self._options)
        with stream:  # leaving it cancels what has not ended, after what is printed here
            try:
                self._show(stream)
            except KeyboardInterrupt:
                self._asides.line(" (stopped)")
            except PenstockError as error:
                self._num_failed += 1
                print_error(explain(error))
        if stream.text:  # an answer that was cut short stays in the conversation
            self._turns += [asked, {"role": "assistant", "content": stream.text}]

    def _show(self, stream: Stream) -> None:
        try:
            for token in stream:
                self._asides.on_token()
                echo(token, is_line=False)
        finally:
            if stream.text:
                echo("")
        if stream.num_resumed:
            self._asides.note(f"the stream broke {stream.num_resumed} times and continued")
        if stream.answer is not None and stream.answer.finish_reason == "length":
            self._asides.note(f"stopped at {stream.answer.usage.completion_tokens} tokens; --max-tokens allows more")
