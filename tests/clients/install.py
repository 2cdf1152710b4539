"""Installs the programs of this ring next to the tests' own packages: `python -m tests.clients.install`.

All of the extra `[clients]` at once; if that fails, one after the other, so that one that cannot be had leaves the
others. What failed, and the installer's last line, goes into `not-installed.json` of the venv: it is the reason of a
skipped test.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.clients.program import ALONE, JS

ROOT = Path(__file__).parents[2]
INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
# Each line in a venv of its own, as it needs older packages than Penstock and the rest: aider some hundred exact ones.
OF_THEIR_OWN = (
    ("aider-chat==0.86.2",),
    ("instructor==1.17.0", "anthropic==2.14.0"),
    ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0"),
    ("openapi-python-client==0.29.1",),
)

NOT_TRIED = {"guidellm": "it needs torch, some 3 GB with its libraries"}


def install() -> dict[str, str]:
    """Everything; returns the reason for each that could not be installed."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    clients: list[str] = wanted["project"]["optional-dependencies"]["clients"]
    failed = dict(NOT_TRIED)
    if _failure(sys.executable, *INSTALL, *clients):
        failed |= {_name(one): why for one in clients if (why := _failure(sys.executable, *INSTALL, one))}
    for names in OF_THEIR_OWN:
        if why := _failure_alone(*names):
            failed |= {_name(one): why for one in names}
    if why := _failure_of_node():
        failed["npm"] = why
    return failed


def _failure_alone(*requirements: str) -> str:
    place = ALONE / _name(requirements[0])
    if not (place / "bin" / "python").exists() and (why := _failure(sys.executable, "-m", "venv", str(place))):
        return why
    return _failure(str(place / "bin" / "python"), *INSTALL, *requirements)


def _failure_of_node() -> str:
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not on PATH"
    return _failure(npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error", cwd=JS)


def _failure(*command: str, cwd: Path = ROOT) -> str:
    """Runs it; its last line if it failed."""
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"status {done.returncode}"


def _name(requirement: str) -> str:
    return re.split(r"[\[=<>]", requirement)[0]


if __name__ == "__main__":
    failed = install()
    (Path(sys.prefix) / "not-installed.json").write_text(json.dumps(failed, indent=1), encoding="utf-8")
    for name, why in failed.items():
        print(f"{name} could not be installed: {why}")  # noqa: T201
