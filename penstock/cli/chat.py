"""`penstock chat`: a conversation in the terminal, streamed; its answers survive the gateway that began them."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from penstock.cli.flags import exit_with, print_error
from penstock.cli.options import DEFAULT_URL, ApiKey, MaxTokens, Model, Temperature, Url
from penstock.cli.terminal import console, echo
from penstock.client import Client, Stream
from penstock.client.options import Options
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
    with Client(*url.split(","), api_key=api_key) as client:
        return _Chat(client, options, system).run()


class _Chat:
    """One conversation. `turns`: the messages so far, without the system's."""

    def __init__(self, client: Client, options: Options, system: str) -> None:
        self._client = client
        self._options = options
        self._system = system
        self._turns: list[dict[str, str]] = []
        self._is_person = sys.stdin.isatty()
        self._aside = console(stderr=True)
        self._num_failed = 0

    def run(self) -> int:
        if self._is_person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` a history and keys to edit with
            self._aside.print("/help lists the commands; Ctrl-D leaves.", style="dim")
        while True:
            try:
                line = input("> " if self._is_person else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:  # a line that was begun is thrown away
                self._aside.print()
                continue
            if line in ("/exit", "/quit"):
                break
            if line.startswith("/"):
                self._command(*line.partition(" ")[::2])
            elif line:
                self._ask(line)
        return 1 if self._num_failed and not self._is_person else 0

    def _command(self, name: str, rest: str) -> None:
        if name == "/reset":
            self._turns.clear()
        elif name == "/undo":
            del self._turns[-2:]
        elif name == "/system":
            self._system = rest.strip()
        elif name == "/model":
            self._options["model"] = rest.strip() or None
        else:
            self._aside.print(HELP, style="dim")

    def _ask(self, question: str) -> None:
        before = [{"role": "system", "content": self._system}] if self._system else []
        asked = {"role": "user", "content": question}
        stream = self._client.stream(messages=[*before, *self._turns, asked], **self._options)
        try:
            with stream:
                self._show(stream)
        except KeyboardInterrupt:
            self._aside.print(" (stopped)", style="dim")
        except PenstockError as error:
            self._num_failed += 1
            print_error(error.message)
        if stream.text:  # an answer that was cut short stays in the conversation
            self._turns += [asked, {"role": "assistant", "content": stream.text}]

    def _show(self, stream: Stream) -> None:
        try:
            for token in stream:
                echo(token, is_line=False)
        finally:
            if stream.text:
                echo("")
        if stream.num_resumed:
            self._aside.print(f"(the stream broke {stream.num_resumed} times and continued)", style="dim")
