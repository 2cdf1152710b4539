"""`penstock keys`: writes the file of API keys. A secret is printed once, to stdout, and nowhere else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from penstock.callers import keys as store
from penstock.cli.flags import exit_with, print_error
from penstock.cli.help import PlainCommand, new_group
from penstock.cli.operators import call_gateway
from penstock.cli.options import DEFAULT_URL, ApiKey, AsJson, Url
from penstock.cli.terminal import console, echo
from penstock.errors import ConfigError, Unavailable
from penstock.settings import load_settings

keys = new_group("keys", "Create, list, rotate and revoke API keys.")

File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="FILE",
        help="The keys file, .toml or .json.  [env var: PENSTOCK_API_KEYS_FILE]",
        show_default=False,
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The part of the key before the dot.")]


@keys.command(cls=PlainCommand)
@exit_with
def create(
    name: Annotated[str, typer.Option(metavar="NAME", help="Whose key this is, for people.")] = "",
    rpm: Annotated[
        int | None,
        typer.Option(min=0, max=10**9, metavar="RPM", help="Its own limit, in requests a minute. 0: no limit."),
    ] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, max=10**9, metavar="N", help="Requests that it may send at once.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model that it may use; repeat for more. Default: all models."),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May see and cancel the requests of others.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="May read /metrics, and nothing else: it may use no model.")
    ] = False,
    file: File = None,
) -> int:
    """Make a key and print it, this once."""
    if metrics and (model or admin):
        raise ConfigError("--metrics makes a key for /metrics alone: leave out --model and --admin")
    models = () if metrics else model or None
    key, text = store.create_key(_path(file), name, rpm=rpm, burst=burst, models=models, admin=admin, metrics=metrics)
    _reveal(text, f"Created {key.id}. Copy the key now; it will not be shown again:")
    return 0


@keys.command("list", cls=PlainCommand)
@exit_with
def list_keys(as_json: AsJson = False, file: File = None) -> int:
    """Show the keys, without secrets."""
    found = store.read_keys(_path(file))
    if as_json:
        rows = [
            {
                "id": key.id,
                "name": key.name,
                "rpm": key.rpm,
                "burst": key.burst,
                "models": key.models,
                "admin": key.admin,
                "metrics": key.metrics,
                "revoked": key.revoked,
                "secrets": len(key.hashes),
            }
            for key in found
        ]
        echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = Table("id", "name", "rpm", "burst", "models", "secrets", "state", box=None, pad_edge=False)
    for key in found:
        limits = ["–" if limit is None else str(limit) for limit in (key.rpm, key.burst)]
        state = "revoked" if key.revoked else "admin" if key.admin else "metrics" if key.metrics else "live"
        models = "all" if key.models is None else ", ".join(key.models) or "none"
        table.add_row(key.id, key.name, *limits, models, str(len(key.hashes)), state)
    console().print(table)
    return 0


@keys.command(cls=PlainCommand)
@exit_with
def rotate(
    key_id: Id,
    finish: Annotated[bool, typer.Option("--finish", help="End the rotation: the old secret stops working.")] = False,
    file: File = None,
) -> int:
    """Give a key a new secret. The one before it works on until `--finish` or the next rotation."""
    path = _path(file)
    if finish:
        ended = store.retire_old_secret(path, key_id)
        typer.echo(f"{key_id}: {'the old secret has ended' if ended else 'there was only one secret'}", err=True)
        return 0
    _reveal(
        store.rotate_key(path, key_id),
        f"{key_id} has a new secret; the old one still works. Copy it now; it will not be shown again:",
    )
    return 0


@keys.command(cls=PlainCommand)
@exit_with
def revoke(
    key_id: Id,
    file: File = None,
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="Also cancel what it has waiting and running, through a gateway."),
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> int:
    """End a key. Running gateways notice within a second or two; its running requests go on without --cancel."""
    ended = store.revoke_key(_path(file), key_id)
    typer.echo(f"{key_id} {'is revoked' if ended else 'was revoked before'}", err=True)
    if cancel:
        _cancel_all(key_id, url, api_key)
    return 0


def _cancel_all(key_id: str, url: str, api_key: str | None) -> None:
    """At once, and again when every gateway must have noticed: until then the key may have sent more."""
    path = f"/callers/{quote(key_id, safe='')}/requests"
    first = call_gateway("DELETE", url, path, api_key, dict[str, Any])
    time.sleep(2 * store.CHECK_INTERVAL_S)
    then = call_gateway("DELETE", url, path, api_key, dict[str, Any])
    running = max(first["being_cancelled"], then["being_cancelled"])
    echo(f"cancelled {first['cancelled'] + then['cancelled']} that waited and {running} that ran", stderr=True)
    if then["is_live"]:
        raise Unavailable(
            f"the gateway at {url} still accepts {key_id}: it reads another file, or cannot read this one "
            "(see penstock doctor)"
        )


def _path(file: Path | None) -> Path:
    path = file or load_settings().api_keys_file
    if path is None:
        raise ConfigError("which file? Give --file keys.toml or set PENSTOCK_API_KEYS_FILE")
    if exposure := store.exposure(path):
        print_error(exposure)
    return path


def _reveal(text: str, note: str) -> None:
    typer.echo(note, err=True)
    typer.echo(text)
