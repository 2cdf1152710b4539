"""`penstock bench`: flags to a plan, progress while it runs, a table, JSON or a page of what came of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from penstock.cli.flags import exit_with, print_error
from penstock.cli.options import DEFAULT_URL, ApiKey, OneUrl, json_option
from penstock.cli.terminal import console, echo
from penstock.client.route import read_urls
from penstock.errors import ConfigError, InternalError
from penstock.loadgen import LoadProgress, Plan, Result, from_file, parse_slo, run, synthetic
from penstock.loadgen.html import render_html
from penstock.loadgen.plan import API, PATHS, Prepared
from penstock.loadgen.report import render_table

MAX_OPEN = 10_000  # connections of an open loop, by default
CLOSED = 32
DURATION_S = 10.0

_LOAD, _PROMPTS, _JUDGE, _OUT = "Load", "Prompts", "Judgement", "Output"


def _option(panel: str | None, metavar: str, text: str, **more: Any) -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel=panel, **more)


Api = Annotated[API, _option(None, "|".join(PATHS), "generate is Penstock's own API, the others are OpenAI's.")]
LoadModel = Annotated[str | None, _option(None, "NAME", "Model. Default: the first one that the server serves.")]
Concurrency = Annotated[
    int | None,
    _option(
        _LOAD,
        "N",
        f"Closed loop: requests at a time (default {CLOSED}). With --rate: maximum of connections ({MAX_OPEN}).",
        min=1,
        max=100_000,
    ),
]
Rate = Annotated[float, _option(_LOAD, "N", "Open loop: arrivals a second (Poisson). 0: closed loop.", min=0.0)]
Duration = Annotated[float | None, _option(_LOAD, "SECONDS", f"How long to measure (default {DURATION_S:g}).", min=0.1)]
Requests = Annotated[int | None, _option(_LOAD, "N", "Stop after this number of requests instead.", min=1)]
Warmup = Annotated[float, _option(_LOAD, "SECONDS", "Load before measuring.", min=0.0)]
Ramp = Annotated[
    float | None,
    _option(_LOAD, "SECONDS", "Time over which connections begin (default: the warm-up). 0: at once.", min=0.0),
]
Preconnect = Annotated[
    bool,
    typer.Option(
        "--preconnect/--no-preconnect",
        help="Open the connections before the load. --no-preconnect: each with its first request, all at the same "
        "moment, as many clients do after a gateway has died.",
        rich_help_panel=_LOAD,
    ),
]
Processes = Annotated[int, _option(_LOAD, "N", "Processes that generate the load.", min=1, max=64)]
LoadSeed = Annotated[int, _option(_LOAD, "N", "Seed of the random prompts and arrivals.")]
InputTokens = Annotated[int, _option(_PROMPTS, "N", "Words in a generated prompt.", min=1, max=1_000_000)]
OutputTokens = Annotated[int, _option(_PROMPTS, "N", "max_tokens of a request.", min=1, max=1_000_000)]
Prompts = Annotated[Path | None, _option(_PROMPTS, "FILE", "Prompts from a JSONL file, as for `ask --file`.")]
Extra = Annotated[str | None, _option(_PROMPTS, "JSON", "More fields of each body: '{\"ignore_eos\": true}'.")]
Stream = Annotated[
    bool, typer.Option("--stream/--no-stream", help="Ask for streams or for whole answers.", rich_help_panel=_PROMPTS)
]
Slo = Annotated[str, _option(_JUDGE, "LIMITS", "Goodput: count the requests within ttft=…ms,itl=…ms,gap=…ms,e2e=…s.")]
AnswerTimeout = Annotated[float, _option(_JUDGE, "SECONDS", "An answer that takes longer has failed.", min=0.1)]
AsJson = Annotated[bool, json_option(_OUT)]
Html = Annotated[Path | None, _option(_OUT, "FILE", "Write a page with charts to this file.")]


@exit_with
def bench(
    url: OneUrl = DEFAULT_URL,
    api: Api = "generate",
    api_key: ApiKey = None,
    model: LoadModel = None,
    concurrency: Concurrency = None,
    rate: Rate = 0.0,
    duration: Duration = None,
    requests: Requests = None,
    warmup: Warmup = 1.0,
    ramp: Ramp = None,
    preconnect: Preconnect = True,
    processes: Processes = 1,
    seed: LoadSeed = 0,
    input_tokens: InputTokens = 32,
    output_tokens: OutputTokens = 64,
    prompts: Prompts = None,
    extra: Extra = None,
    stream: Stream = True,
    slo: Slo = "",
    timeout: AnswerTimeout = 60.0,
    as_json: AsJson = False,
    html: Html = None,
) -> int:
    """Put load on a running server and check every answer. Exit status 1: an answer was wrong, or none was right."""
    _check_span(requests, duration, rate, warmup, ramp, preconnect)
    more = _extra(extra, model)
    plan = Plan(
        url=read_urls([url])[0],
        api=api,
        api_key=_key(api_key),
        prepared=_prepared(api, prompts, input_tokens, output_tokens, stream, seed, more),
        is_stream=stream,
        concurrency=concurrency or (MAX_OPEN if rate else CLOSED),
        rate=rate,
        duration_s=duration or DURATION_S,
        requests=requests or 0,
        warmup_s=warmup,
        ramp_s=warmup if ramp is None else ramp,
        preconnect=preconnect,
        timeout_s=timeout,
        slo=parse_slo(slo),
        seed=seed,
        processes=processes,
    )
    try:
        result = _run(plan)
        if html is not None:
            html.write_text(render_html(result), encoding="utf-8")
    except InternalError as error:
        print_error(error.message)
        return 1
    except OSError as error:
        raise ConfigError(f"{html}: {error.strerror}") from error
    if as_json:
        echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        console().print(render_table(result))
    return 1 if result.is_failure else 0


def _check_span(
    requests: int | None, duration: float | None, rate: float, warmup: float, ramp: float | None, preconnect: bool
) -> None:
    if requests is not None and duration is not None:
        raise ConfigError("either --duration or --requests, not both")
    if ramp is not None and (rate or ramp > warmup):
        raise ConfigError("--ramp is of a closed loop, and within its --warmup")
    if not preconnect and (rate or ramp):
        raise ConfigError("--no-preconnect begins all requests at once: it does not go with --rate or --ramp")


def _key(api_key: str | None) -> str:
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("--api-key: no key holds such characters")
    return api_key or ""


def _extra(text: str | None, model: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise ConfigError(f"--extra is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError("--extra must be a JSON object")
    return {**found, **({"model": model} if model else {})}


def _prepared(
    api: API, path: Path | None, input_tokens: int, output_tokens: int, stream: bool, seed: int, extra: dict[str, Any]
) -> list[Prepared]:
    if path is not None:
        return from_file(api, path, output_tokens=output_tokens, is_stream=stream, extra=extra)
    return synthetic(
        api, input_tokens=input_tokens, output_tokens=output_tokens, is_stream=stream, seed=seed, extra=extra
    )


def _run(plan: Plan) -> Result:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.fields[num_ended]} answers · {task.fields[num_failed]} failed · {task.fields[speed]} tokens/s"
        ),
        TimeElapsedColumn(),
    )
    total = plan.requests or plan.warmup_s + plan.duration_s
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("warming up", total=total, num_ended=0, num_failed=0, speed="–")
        before = (0.0, 0)

        def on_progress(at: LoadProgress) -> None:
            nonlocal before
            elapsed_s, tokens = at.elapsed_s - before[0], at.num_tokens - before[1]
            before = (at.elapsed_s, at.num_tokens)
            is_past = not plan.requests and at.elapsed_s > total
            bar.update(
                task,
                description="last answers" if is_past else "measuring" if at.num_begun else "warming up",
                completed=at.num_begun if plan.requests else min(at.elapsed_s, total),
                num_ended=at.num_ended,
                num_failed=at.num_failed,
                speed=f"{tokens / elapsed_s:,.0f}" if elapsed_s > 0 else "–",
            )

        result = asyncio.run(run(plan, on_progress))
    if result.is_generator_busy:
        print_error(
            f"the generator itself was busy ({max(result.cpu):.0%} of a core): give it more --processes, "
            "or take these figures as a lower limit of the server"
        )
    return result
