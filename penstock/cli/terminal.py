"""How commands print text of others: of a model, a server, a client whose request is listed.

On a terminal what commands it comes out escaped: control characters, C1, and what turns the direction of text. Into a
file or a pipe every byte goes as it came.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from penstock.log_format import printable


def echo(text: str, *, is_line: bool = True, stderr: bool = False) -> None:
    """Print at once."""
    stream = sys.stderr if stderr else sys.stdout
    out = printable(text) if stream.isatty() else text
    stream.write(f"{out}\n" if is_line else out)
    stream.flush()


def console(*, stderr: bool = False) -> Console:
    """For tables, bars and asides. Text is not read as markup."""
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


class _Console(Console):
    """Escapes at the last step, where all text is text and every style still a style."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control or not self.is_terminal else _escaped(segment)


def _escaped(segment: Segment) -> Segment:
    text = printable(segment.text)
    return segment if text == segment.text else Segment(text, segment.style)
