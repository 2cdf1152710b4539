"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.ask import ask
from penstock.cli.bench import bench
from penstock.cli.chat import chat
from penstock.cli.config import config
from penstock.cli.flags import new_app
from penstock.cli.help import PlainCommand
from penstock.cli.keys import keys
from penstock.cli.operators import cancel, dead, doctor, ps
from penstock.cli.plan import plan
from penstock.cli.processes import gateway, serve, worker
from penstock.version import __version__

app = new_app()
for command in (serve, gateway, worker, ask, chat, bench, plan, config, doctor, ps, cancel):
    app.command(cls=PlainCommand)(command)
app.add_typer(keys, name="keys")
app.add_typer(dead, name="dead")


@app.command(cls=PlainCommand)
def version() -> None:
    """Print the version."""
    typer.echo(f"penstock {__version__}")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        version()
        raise typer.Exit


@app.callback()
def _root(
    has_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass
