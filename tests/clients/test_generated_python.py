"""A client that openapi-python-client makes of the OpenAPI document of a gateway, and a program over it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.clients.program import ALONE, Program, run
from tests.support.programs import Site

PROGRAM = Program("openapi-python-client", alone=("openapi-python-client",))
BIN = ALONE / "openapi-python-client" / "bin"
USE = Path(__file__).parent / "python" / "generated.py"


@pytest.fixture(scope="module")
def folder(server: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the generated package is, and the program. What the generator does not understand is an error."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yml").write_text("post_hooks: []\n")
    (folder / USE.name).write_text(USE.read_text(encoding="utf-8"), encoding="utf-8")
    run(
        BIN / "openapi-python-client", "generate",
        "--url", f"{server.gateways[0]}/openapi.json", "--config", folder / "config.yml",
        "--meta", "none", "--output-path", folder / "penstock_api", "--fail-on-warning",
    )  # fmt: skip
    return folder


def test_generated_client(folder: Path, url: str) -> None:
    run(BIN / "python", folder / USE.name, url)


def test_generated_client_compiles(folder: Path) -> None:
    run(sys.executable, "-m", "compileall", "-q", folder / "penstock_api")


def test_types_of_the_generated_client(folder: Path) -> None:
    """The generator writes casts that need not be."""
    options = ("--strict", "--no-warn-redundant-casts", "--config-file=", f"--cache-dir={folder / 'cache'}")
    run(sys.executable, "-m", "mypy", f"--python-executable={BIN / 'python'}", *options, folder / USE.name, cwd=folder)
