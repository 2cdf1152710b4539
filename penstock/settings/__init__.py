"""Settings: one declaration → environment, flags, `--help`, the docs page and `.env.example`.

`declaration` lists the settings, `about` describes one, `load` finds the values and rejects bad ones, `render`
writes the pages. `models` reads models and writes them as text, `toml` writes them as tables, `old_options` renames
their old options. Settings are passed as arguments; no module holds them.
"""

from penstock.settings.about import About, CommandName
from penstock.settings.declaration import ReasoningField, Settings
from penstock.settings.load import load_settings
from penstock.settings.models import ModelSpec, format_models, parse_models

__all__ = [
    "About",
    "CommandName",
    "ModelSpec",
    "ReasoningField",
    "Settings",
    "format_models",
    "load_settings",
    "parse_models",
]
