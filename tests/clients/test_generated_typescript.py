"""Types that openapi-typescript makes of the OpenAPI document of a gateway, and a program over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.program import JS, Program, bin_of_node, run
from tests.support.programs import Site

PROGRAM = Program("openapi-typescript", node=("openapi-typescript", "typescript"))
OPTIONS = ("--strict", "--target", "es2022", "--lib", "es2022,dom", "--module", "nodenext")


@pytest.fixture(scope="module")
def folder(server: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the generated types are, and the program."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "generated.ts").write_text((JS / "generated.ts").read_text(encoding="utf-8"), encoding="utf-8")
    document = f"{server.gateways[0]}/openapi.json"
    run(bin_of_node("openapi-typescript"), document, "--output", folder / "penstock.d.ts")
    return folder


def test_generated_types(folder: Path, url: str) -> None:
    run(bin_of_node("tsc"), *OPTIONS, folder / "generated.ts")
    run("node", folder / "generated.js", url)
