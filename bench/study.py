"""A study: cells of load, each in several ways, in rounds that begin with another way; medians into a page.

What is measured, and what a row of the table says, is the study's own business.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.measure import Times
from bench.report import RESULTS, about, between, save

C = TypeVar("C")
Round = dict[str, dict[str, dict[str, float]]]  # by cell and way


@dataclass(frozen=True)
class Study(Generic[C]):
    """`module` is what `python -m` runs; its last part names the results. `page` holds `begin` and `end`.

    `note`: what the page says besides date, command and hardware. `cells` are dataclasses with a `name`.
    """

    module: str
    about: str
    cells: Sequence[C]
    ways: Sequence[str]
    measure: Callable[[C, str, Times], dict[str, Any]]
    table: Callable[[Sequence[Round]], str]
    page: Path
    begin: str
    end: str
    times: Times
    note: str = ""

    def run(self, arguments: list[str]) -> int:
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=self.about)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--quick", action="store_true", help="one short round; nothing is written")
        asked = parser.parse_args(arguments)
        times = Times(1.5, 0.5, 0.0) if asked.quick else self.times
        rounds = [self._round(number, times) for number in range(1 if asked.quick else asked.rounds)]
        text = self.table(rounds)
        print(text)
        if not asked.quick:
            self._write(" ".join([f"python -m {self.module}", *arguments]), times, rounds, text)
        return 0

    def _round(self, number: int, times: Times) -> Round:
        shift = number % len(self.ways)
        seen: Round = {}
        for cell in self.cells:
            name: str = cell.name  # type: ignore[attr-defined]  # see above
            seen[name] = {way: self.measure(cell, way, times) for way in (*self.ways[shift:], *self.ways[:shift])}
            print(f"{name:34} {seen[name]}", flush=True)
        return seen

    def _write(self, command: str, times: Times, rounds: Sequence[Round], text: str) -> None:
        made = about(command, times, len(rounds))
        path = RESULTS / f"{self.module.rpartition('.')[2]}-{made['date']}.json"
        cells = [asdict(cell) for cell in self.cells]  # type: ignore[call-overload]  # see above
        save({"about": made, "cells": cells, "rounds": rounds}, path)
        hardware = f"{made['cores']} cores of {made['cpu']}"
        said = f"{made['date']}, `{command}`: medians of {len(rounds)} rounds, {hardware}{self.note}.\n\n"
        page = between(self.page.read_text(encoding="utf-8"), self.begin, self.end, f"\n{said}{text}\n")
        self.page.write_text(page, encoding="utf-8")
        print(f"wrote {os.path.relpath(path)} and {os.path.relpath(self.page)}")
