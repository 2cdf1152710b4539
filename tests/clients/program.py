"""A program of another project: what must be installed for it, in which versions it is, and why it cannot run."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import httpx2

from tests.support.waiting import PATIENCE

PYTHON = Path(__file__).parent / "python"  # what runs in these: it imports nothing of this repository
JS = Path(__file__).parent / "js"
RUN_S = 240 * PATIENCE
ALONE = Path(sys.prefix) / "alone"  # a venv each for programs that need other versions than the others


class Missing(Exception):
    """The program cannot run here; the text is the reason, found by looking."""


@dataclass(frozen=True)
class Program:
    """One row of docs/clients.md; each module of this ring has one as `PROGRAM`.

    `python`: distributions of the extra `[clients]`. `node`: packages of `js/package.json`. `alone`: distributions that
    have a venv for themselves, by the name of the first. `command`: a program of the system, with the option for its
    version.
    """

    title: str
    python: tuple[str, ...] = ()
    node: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def versions(self) -> dict[str, str]:
        """By name. Raises `Missing`."""
        found = {name: _of_distribution(name) for name in self.python}
        found |= {name: _of_package(name) for name in self.node}
        found |= {name: _of_venv(self.alone[0], name) for name in self.alone}
        if self.command:
            found[self.command[0]] = _of_command(self.command)
        return found


def _of_distribution(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise Missing(f"the Python package {name} is not installed{_why_not(name)}") from None


def _of_package(name: str) -> str:
    if shutil.which("node") is None:
        raise Missing("node is not installed")
    try:
        text = (JS / "node_modules" / name / "package.json").read_text(encoding="utf-8")
    except OSError:
        raise Missing(f"the npm package {name} is not installed{_why_not('npm')}") from None
    return str(json.loads(text)["version"])


def _of_venv(venv: str, name: str) -> str:
    found = list((ALONE / venv).glob(f"lib/python*/site-packages/{name.replace('-', '_')}-*.dist-info"))
    if not found:
        raise Missing(f"the Python package {name} is not installed{_why_not(name)}")
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2]


@functools.cache
def _of_command(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not on PATH")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    number = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    if done.returncode or not number:
        raise Missing(f"{' '.join(command)} ended with {done.returncode}")
    return number[0]


def _why_not(name: str) -> str:
    """What the installer printed last when it failed, from the file that `tests/clients/install.py` writes."""
    try:
        reasons = json.loads((Path(sys.prefix) / "not-installed.json").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return f": {reasons[name]}" if name in reasons else ""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What it prints; fails with all of it unless it ends with 0."""
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    )
    return done.stdout


def outcomes(*command: str | Path) -> dict[str, str | None]:
    """What a script with several checks prints: for each its error, or None."""
    return json.loads(run(*command).splitlines()[-1])  # type: ignore[no-any-return]


def python_alone(program: Program) -> Path:
    return ALONE / program.alone[0] / "bin" / "python"


def num_answers(url: str) -> int:
    """How many requests the server has answered well, by its metrics."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("penstock_requests_total{") and 'outcome="ok"' in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in counts)


def bin_of_node(name: str) -> Path:
    return JS / "node_modules" / ".bin" / name
