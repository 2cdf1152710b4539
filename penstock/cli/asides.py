"""Notes of `ask` and `chat` about an answer: one line on stderr, in brackets, so that it is not part of the answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from penstock.cli.terminal import console
from penstock.errors import PenstockError


class Asides:
    """Give `on_retry` to a client, and call `on_token` for each token of an answer."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._is_retrying = False

    def line(self, text: str = "") -> None:
        self._console.print(text, style="dim")

    def note(self, text: str) -> None:
        self.line(f"({text})")

    def on_retry(self, error: PenstockError, pause_s: float) -> None:
        """One line for each time that an answer comes to a halt."""
        if not self._is_retrying:
            self._is_retrying = True
            reason = "connection lost" if error.code == "unavailable" else error.message.rstrip(".")
            self.note(f"{reason}; trying again…")

    def on_token(self) -> None:
        self._is_retrying = False

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Within it the client's warnings are such lines, too."""
        handler = _Handler(self)
        logger = logging.getLogger("penstock.client")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, asides: Asides) -> None:
        super().__init__(logging.WARNING)
        self._asides = asides

    def emit(self, record: logging.LogRecord) -> None:
        self._asides.note(record.getMessage())
