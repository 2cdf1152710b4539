"""The options that several commands share, each with one text. Knows no command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.client.route import DEFAULT_URL

__all__ = [
    "DEFAULT_URL", "ApiKey", "AsJson", "MaxTokens", "Model", "OneUrl", "Seed", "StopStrings", "Temperature", "Timeout",
    "TopP", "Url", "json_option",
]  # fmt: skip


def _url(text: str) -> Any:
    return typer.Option("--url", metavar="URL", envvar="PENSTOCK_URL", help=text)


def json_option(panel: str | None = None) -> Any:
    """`--json`, in the section `panel` of the help."""
    return typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=panel)


Url = Annotated[str, _url("Base URL of a gateway; several gateways of one pool are separated by commas.")]
OneUrl = Annotated[str, _url("Base URL of one server; it may end in /v1.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar="PENSTOCK_API_KEY",
        help="API key that is sent to the server. Prefer the variable: every user of this machine can read flags.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, json_option()]


def _sampling(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel="Sampling")


Model = Annotated[str | None, _sampling("NAME", "Model. Default: the first one that the server serves.")]
MaxTokens = Annotated[int | None, _sampling("N", "Maximum length of an answer, in tokens. Default: the server's.")]
Temperature = Annotated[float | None, _sampling("NUMBER", "Randomness, 0 to 2. Default: the backend's.")]
TopP = Annotated[
    float | None,
    _sampling("NUMBER", "Sample from the likeliest tokens, up to this sum of probabilities. Default: the backend's."),
]
StopStrings = Annotated[list[str] | None, _sampling("TEXT", "End the answer at this text. Repeat for more.")]
Seed = Annotated[int | None, _sampling("N", "The same seed repeats the answer, where the backend can.")]
Timeout = Annotated[float | None, _sampling("SECONDS", "Deadline of a question.")]
