"""Settings to text again, for a child process' environment."""

from __future__ import annotations

from penstock.settings.about import About, env_name, text_of
from penstock.settings.declaration import Settings


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables with which another process loads the same settings. Holds secrets: for children only.

    An unset one is empty, so that it also hides what the child would inherit; one that may not be empty is left out.
    """
    texts = {name: text_of(getattr(settings, name)) for name in type(settings).model_fields}
    infos = type(settings).model_fields
    return {env_name(name): text for name, text in texts.items() if text or not About.of(infos[name]).guards}
