"""The options that several commands share, each with one text. Knows no command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.client.route import DEFAULT_URL

__all__ = ["DEFAULT_URL", "ApiKey", "AsJson", "OneUrl", "Url", "json_option"]


def _url(text: str) -> Any:
    return typer.Option("--url", envvar="PENSTOCK_URL", help=text)


def json_option(panel: str | None = None) -> Any:
    """`--json`, in the section `panel` of the help."""
    return typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=panel)


Url = Annotated[str, _url("Base URL of a gateway; several gateways of one pool are separated by commas.")]
OneUrl = Annotated[str, _url("Base URL of one server; it may end in /v1.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="PENSTOCK_API_KEY",
        help="API key that is sent to the server. Prefer the variable: every user of this machine can read flags.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, json_option()]
