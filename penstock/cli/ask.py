"""`penstock ask`: a question on the terminal, or a file of them with a progress bar."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from penstock.ask import Asker, AskOutcome, Prompt, Summary, ask_file
from penstock.cli.asides import Asides
from penstock.cli.flags import FAILED, INTERRUPTED, exit_with, explain, print_error
from penstock.cli.options import (
    DEFAULT_URL,
    ApiKey,
    MaxTokens,
    Model,
    Seed,
    StopStrings,
    Temperature,
    Timeout,
    TopP,
    Url,
)
from penstock.cli.terminal import console, echo
from penstock.errors import ConfigError

_FILE = "A file of prompts"


@exit_with
def ask(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question, in quotes; `-` reads it from stdin.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Model = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    stop: StopStrings = None,
    seed: Seed = None,
    timeout: Timeout = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='A JSON object in each line, {"prompt": …} or {"messages": …}, with an id and sampling if you like. '
            "`-` reads stdin.",
            rich_help_panel=_FILE,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Answers are appended here, in the order in which they end. Prompts that it has an answer to are not "
            "asked again.",
            rich_help_panel=_FILE,
        ),
    ] = Path("answers.jsonl"),
    concurrency: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Questions at a time.", rich_help_panel=_FILE)
    ] = 32,
) -> int:
    """Ask a running server and stream the answer; or a whole file of questions with --file."""
    sampling = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop": stop or None,
        "seed": seed,
        "timeout_s": timeout,
    }
    body = {name: value for name, value in sampling.items() if value is not None}
    if file is not None and words:
        raise ConfigError("either a question or --file, not both")
    if file is not None and out == Path("-"):  # a run reads from it what was answered before
        raise ConfigError("--out must be a file, not stdout: the same command continues from it")
    if file is not None:
        asker = Asker(url, api_key, max_connections=concurrency)
        return _run(_ask_file(asker, file, out, concurrency, body), f"stopped; the same command continues from {out}")
    # Events of the queue make the server answer at once, so that Ctrl-C knows from the start what to cancel.
    question = {"prompt": _question(words or []), "queue_events": True, **body}
    return _run(_ask_one(url, api_key, question), "stopped")


def _question(words: list[str]) -> str:
    """Raises `ConfigError` where there is none, or several words that the shell has taken apart."""
    if len(words) > 1:
        raise ConfigError(f'put the question in quotes: penstock ask "{" ".join(words)}"')
    is_given = words not in ([], ["-"])
    text = words[0] if is_given else "" if not words and sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        raise ConfigError(
            'no prompt given; usage: penstock ask "…", or `-` to read from stdin, or --file prompts.jsonl'
        )
    return text


def _run(task: Coroutine[Any, Any, int], stopped: str) -> int:
    try:
        return asyncio.run(task)
    except KeyboardInterrupt:
        print_error(stopped)
        return INTERRUPTED


async def _ask_one(url: str, api_key: str | None, body: dict[str, Any]) -> int:
    asides = Asides()

    def show(text: str) -> None:
        asides.on_token()
        _show(text)

    on_retry = asides.on_retry if sys.stderr.isatty() else None
    async with Asker(url, api_key, on_retry=on_retry) as asker:
        with asides.warnings():
            outcome = await asker.ask(body, show)
    if outcome.text:
        echo("")
    if outcome.error is not None:
        print_error(explain(outcome.error))
        return FAILED
    if sys.stderr.isatty():
        console(stderr=True).print(_tally(outcome), style="dim")
    return 0


def _show(text: str) -> None:
    echo(text, is_line=False)


def _tally(outcome: AskOutcome) -> str:
    whole = outcome.answer
    if whole is None:
        return ""
    times = whole.timings
    took = f" in {(times.total_ms or 0) / 1000:.2f} s, the first after {times.ttft_ms or 0:.0f} ms"
    return f"{whole.usage.completion_tokens} tokens{took} ({whole.finish_reason})"


class _Counts(ProgressColumn):
    """Failed answers, and all tokens so far, of answers that still run, too. Rendered as often as the bar is."""

    def __init__(self) -> None:
        super().__init__()
        self.num_failed = self.num_tokens = 0
        self.last_error = ""

    def on_text(self, text: str) -> None:
        self.num_tokens += 1

    def render(self, task: Task) -> Text:
        return Text(f"{self.num_failed} failed · {self.num_tokens} tokens")


async def _ask_file(asker: Asker, file: Path, out: Path, concurrency: int, defaults: dict[str, Any]) -> int:
    counts = _Counts()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    async with asker:
        await asker.reach()
        with Progress(*columns, console=console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("asking", total=None)

            def on_start(total: int, before: int) -> None:
                progress.update(bar, total=total, completed=before)

            def on_outcome(prompt: Prompt, outcome: AskOutcome) -> None:
                if outcome.error is not None:
                    counts.num_failed += 1
                    counts.last_error = f"{prompt.id}: {explain(outcome.error)}"
                progress.update(bar, advance=1)

            summary = await ask_file(
                asker, file, out, concurrency=concurrency, defaults=defaults,
                on_start=on_start, on_text=counts.on_text, on_outcome=on_outcome,
            )  # fmt: skip
    return _report(summary, out, counts.last_error)


def _report(summary: Summary, out: Path, last_error: str) -> int:
    before = f", {summary.num_before} were there before" if summary.num_before else ""
    print_error(f"{summary.num_answered} answered{before}, {summary.num_failed} failed; answers in {out}")
    if summary.num_failed:
        print_error(f"the same command retries the failed ones; the last error: {last_error}")
    return FAILED if summary.num_failed else 0
