"""Help as plain text: options in sections, no word cut at any width. Rich's table would cut names at 80 columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

MAX_WIDTH = 80
_MAX_LEFT = 30  # columns for the names of an option; longer ones stand on a line of their own
_NARROW = 60  # below this width every text is under its option

Record = tuple[str, str]


class PlainCommand(TyperCommand):
    """Options stand under their `rich_help_panel`, the others under "Options"."""

    def get_help(self, ctx: Any) -> str:
        return _help(self, ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(_in_usage(param) for param in self.get_params(ctx) if _is_argument(param))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[Record]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if _is_argument(param):
                sections.setdefault("Arguments", []).append((_name(param), getattr(param, "help", None) or ""))
            else:
                sections.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        # The default sections come first, as they are about the command itself.
        for title in sorted(sections, key=lambda title: title not in ("Arguments", "Options")):
            with formatter.section(title):
                _write(formatter, sections[title])


class Group(TyperGroup):
    """Lists commands with the whole of their first paragraph."""

    def get_help(self, ctx: Any) -> str:
        return _help(self, ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records = [param.get_help_record(ctx) for param in self.get_params(ctx)]
        with formatter.section("Options"):
            _write(formatter, [record for record in records if record is not None])
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        lines = [(name, (one.help or "").partition("\n\n")[0]) for name, one in found if one and not one.hidden]
        with formatter.section("Commands"):
            _write(formatter, lines)


def new_group(name: str, text: str) -> typer.Typer:
    """A command of commands."""
    return typer.Typer(name=name, cls=Group, help=text, no_args_is_help=True)


def _help(command: Any, ctx: Any) -> str:
    formatter = ctx.make_formatter()
    formatter.width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    command.format_help(ctx, formatter)
    text: str = formatter.getvalue()
    return text.rstrip("\n")


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _name(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _in_usage(param: Any) -> str:
    return _name(param) if param.required else f"[{_name(param)}]"


def _write(formatter: Any, records: Sequence[Record]) -> None:
    """Names to the left, texts to the right; on a narrow terminal the texts stand below."""
    margin = formatter.current_indent
    is_narrow = formatter.width < _NARROW
    fitting = [len(left) for left, _ in records if len(left) <= _MAX_LEFT]
    column = margin + 4 if is_narrow else margin + max(fitting, default=_MAX_LEFT) + 2
    for left, text in records:
        lines = textwrap.wrap(text, formatter.width - column, break_long_words=False, break_on_hyphens=False)
        head = " " * margin + left
        if lines and len(head) + 2 <= column:
            head = head.ljust(column) + lines.pop(0)
        formatter.write("\n".join([head, *(" " * column + line for line in lines)]) + "\n")
