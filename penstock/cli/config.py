"""`penstock config`: what is in force, and where it came from. Secrets stay hidden."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from penstock.cli.flags import with_settings
from penstock.cli.options import AsJson
from penstock.cli.terminal import console, echo
from penstock.settings import Settings
from penstock.settings.about import EVERY, env_name
from penstock.settings.toml import to_toml


@with_settings(*EVERY)
def config(settings: Settings, as_json: AsJson = False) -> int:
    """Print the effective settings, secrets hidden."""
    if as_json:
        shown = {
            name: {"value": _plain(settings, name), "from": settings.origin(name)} for name in Settings.model_fields
        }
        echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    table.columns[1].overflow = "fold"
    has_tables = any("." in option for spec in settings.models for option in spec.options)
    for name in Settings.model_fields:
        is_set = settings.is_set(name)
        value = "the tables below" if name == "models" and has_tables else settings.shown(name)
        table.add_row(env_name(name), Text(value), settings.origin(name), style="" if is_set else "dim")
    console().print(table)
    if has_tables:
        echo("\n" + "\n\n".join(map(to_toml, settings.models)))
    return 0


def _plain(settings: Settings, name: str) -> Any:
    value = getattr(settings, name)
    return value if value is None or isinstance(value, int | float) else settings.shown(name)
