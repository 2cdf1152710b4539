"""Models as the tables of a TOML file, for `penstock config` and the notice about options under old names. Pure."""

from __future__ import annotations

import json
import re

from penstock.settings.models import ModelSpec, shown_value

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_NEXT_URL = re.compile(r"\+(?=https?://)")


def to_toml(spec: ModelSpec) -> str:
    """The tables that read to this model. Secrets are hidden; without any it is `ModelSpec.of_table`'s inverse."""
    head = f"models.{_key(spec.name)}"
    lines = [f"[{head}]", f"backend = {_text(spec.backend)}"]
    rows: dict[tuple[str, int], list[str]] = {}
    for option, value in spec.options.items():
        table, dot, rest = option.partition(".")
        if not dot:
            lines.append(_line(option, option, value))
            continue
        number, _, field = rest.partition(".")
        rows.setdefault((table, int(number)), []).append(_line(option, field, value))
    for (table, _), fields in sorted(rows.items()):
        lines += ["", f"[[{head}.{table}]]", *fields]
    return "\n".join(lines)


def _line(option: str, key: str, value: str) -> str:
    shown = shown_value(option, value)
    urls = _NEXT_URL.split(shown)
    return f"{key} = [{', '.join(map(_text, urls))}]" if len(urls) > 1 else f"{key} = {_value(shown)}"


def _value(text: str) -> str:
    """A number or a truth value where that reads to the same text, else a string."""
    if text in ("true", "false"):
        return text
    for kind in (int, float):
        try:
            if str(kind(text)) == text and text.lstrip("-")[:1].isdigit():
                return text
        except ValueError:
            continue
    return _text(text)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
