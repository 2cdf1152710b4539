"""The repository itself: the public surface, sizes, freshness of generated pages, and what no file may hold."""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parents[2]

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# Each with the reason why it is one thing.
LONG_FILES = {
    "penstock/settings/declaration.py": "one list: every setting",
    "penstock/worker/tenure.py": "one loop and what it owns; split, its parts would pass everything between them",
    "penstock/transports/base.py": "the promise: every verb in prose, in one place",
    "penstock/transports/memory.py": "the reference: every verb of the promise, side by side",
}
LONG_FUNCTIONS: dict[str, str] = {}

# Each with the reason why it is not in tests/support.
SUPPORT_ELSEWHERE = {
    "tests/contract/rules.py": "the cases of a suite, which test_rules.py runs twice each",
    "tests/models/tiny.py": "needs packages that only its ring installs",
}

PUBLIC = [
    "Answer",
    "AsyncClient",
    "Backend",
    "Batch",
    "Capabilities",
    "Claim",
    "Client",
    "Completion",
    "ConfigError",
    "Done",
    "Event",
    "Failed",
    "Job",
    "Logprob",
    "Message",
    "ModelSpec",
    "PenstockError",
    "RichToken",
    "Sampling",
    "Settings",
    "Started",
    "Status",
    "Token",
    "Tokens",
    "ToolCall",
    "Transport",
    "Usage",
    "__version__",
    "fold",
    "load_settings",
]


@functools.cache
def _parsed(text: str) -> ast.Module:
    """Without the collector: on Python 3.11 it may run code in the middle of this, which then ends in a SystemError."""
    gc.disable()  # https://github.com/python/cpython/issues/106905
    try:
        return ast.parse(text)
    finally:
        gc.enable()


def _files() -> list[Path]:
    """What is in the repository, or will be with the next commit."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def _code() -> Iterator[tuple[str, str]]:
    for path in _files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("penstock/") and path.suffix == ".py":
            yield name, path.read_text(encoding="utf-8")


def _functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


def test_the_public_surface_is_this_list() -> None:
    assert sorted(penstock.__all__) == PUBLIC
    assert dir(penstock) == PUBLIC
    for name in PUBLIC:
        assert getattr(penstock, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = penstock.nothing


def test_an_old_name_still_works_and_its_warning_names_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match=r"penstock\.Piece is now penstock\.RichToken"):
        assert penstock.Piece is penstock.RichToken


def test_importing_penstock_is_light() -> None:
    probe = "import sys, json; old = set(sys.modules); import penstock; print(json.dumps([*set(sys.modules) - old]))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"fastapi", "httpx2", "msgspec", "pydantic", "redis", "rich", "typer", "uvicorn"}


def test_imports_are_declared_and_private_uses_are_bounded() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bounds = {re.split(r"[\[<>=]", text)[0]: text for text in declared}
    imported = set()
    for _, text in _code():
        for node in ast.walk(_parsed(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            imported |= {name.partition(".")[0] for name in names}
    optional = {"tokenizers", "torch", "transformers"}
    foreign = imported - set(sys.stdlib_module_names) - optional - {"penstock"}
    packages = {{"dotenv": "python-dotenv"}.get(name, name.replace("_", "-")) for name in foreign}
    assert packages - set(bounds) == set()
    for name in ("uvicorn", "httptools", "prometheus-client", "starlette"):
        assert ",<" in bounds[name], f"{name} has parts that we use and it does not promise to keep"


def test_the_redis_driver_imports_only_errors_and_itself() -> None:
    """The contract in pyproject.toml lists what is forbidden; this holds what is allowed, also for modules to come."""
    driver = ROOT / "penstock" / "transports" / "redis" / "driver"
    imported = set()
    for path in driver.glob("*.py"):
        for node in ast.walk(_parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    own = {name for name in imported if name.startswith("penstock")}
    assert own, "the driver imports its own modules at least"
    assert {name for name in own if not name.startswith("penstock.transports.redis.driver")} == {"penstock.errors"}


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == penstock.__version__


def test_files_are_short_or_say_why() -> None:
    sizes = {name: text.count("\n") for name, text in _code()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES and name not in LONG_FILES} == {}
    assert [name for name in LONG_FILES if sizes.get(name, 0) <= MAX_FILE_LINES] == [], "needs no exception any more"


def test_functions_are_short_or_say_why() -> None:
    sizes = {
        f"{name}::{function}": (node.end_lineno or 0) - node.lineno + 1
        for name, text in _code()
        for function, node in _functions(_parsed(text).body)
    }
    long = {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES}
    assert {name: size for name, size in long.items() if name not in LONG_FUNCTIONS} == {}
    assert [name for name in LONG_FUNCTIONS if name not in long] == [], "needs no exception any more"


def test_every_module_has_a_docstring() -> None:
    silent = [name for name, text in _code() if text.strip() and ast.get_docstring(_parsed(text)) is None]
    assert silent == []


def test_the_unit_tests_mirror_the_package() -> None:
    """`tests/unit/x/y` tests `penstock/x/y`; `tests/unit/bench` tests the benchmark of this repository."""
    names = [path.relative_to(ROOT) for path in _files() if path.is_relative_to(ROOT / "tests" / "unit")]
    folders = {Path(*name.parts[2:-1]) for name in names} - {Path(), Path("bench")}
    assert [folder.as_posix() for folder in sorted(folders) if not (ROOT / "penstock" / folder).is_dir()] == []
    assert folders, "nothing was looked at"


def test_a_wait_of_a_test_ends_what_hangs_and_not_what_is_slow() -> None:
    """A busy machine alone breaks a limit of seconds. A line that means one has a comment with the reason."""
    places = {"wait_until": 2, "wait_until_async": 2, "asyncio.wait_for": 1, "asyncio.timeout": 0}
    short = []
    for path in _files():
        name = path.relative_to(ROOT).as_posix()
        if (
            path.suffix != ".py"
            or not name.startswith("tests/")
            or name.startswith(("tests/chaos/", "tests/simulation/"))
        ):
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(_parsed(text)):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in places:
                continue
            place = places[ast.unparse(node.func)]
            limits = [*node.args[place : place + 1], *(word.value for word in node.keywords if word.arg == "timeout_s")]
            values = [one.value for one in limits if isinstance(one, ast.Constant)]
            is_short = any(isinstance(value, int | float) and value < 30 for value in values)
            if is_short and "  # " not in text.splitlines()[node.lineno - 1]:
                short.append(f"{name}:{node.lineno}")
    assert short == []


def test_shared_test_code_is_in_support() -> None:
    """The rings below are programs of their own, with modules of their own; elsewhere a file is a test or a fixture."""
    programs = ("tests/chaos/", "tests/clients/", "tests/conformance/", "tests/simulation/")
    names = [path.relative_to(ROOT).as_posix() for path in _files() if path.is_relative_to(ROOT / "tests")]
    stray = [
        name
        for name in names
        if not name.startswith(("tests/support/", *programs))
        and not re.search(r"/(test_\w+|conftest|__init__)\.py$", name)
        and name not in SUPPORT_ELSEWHERE
    ]
    assert stray == []


def test_no_file_names_a_path_of_a_machine() -> None:
    # Spelt in parts, so that this file does not find itself.
    pattern = re.compile("|".join((r"(?<![\w./])/wor" + r"k/\w", r"/hom" + r"e/\w", r"/Use" + r"rs/\w")))
    found = []
    for path in _files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.suffix not in (".js", ".css") and pattern.search(text):
            found.append(path.relative_to(ROOT).as_posix())
    assert found == []


def test_generated_pages_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.stale() == [], "run `make docs`"


def test_a_waiver_has_a_reason() -> None:
    bare = []
    for path in _files():
        if path.suffix != ".py":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            waiver = re.search(r"#\s*(?:noqa: [A-Z0-9, ]+|type: ignore\[[\w, -]+\])(.*)", line)
            if waiver and path.is_relative_to(ROOT / "penstock") and not waiver.group(1).strip(" -–#:"):
                bare.append(f"{path.relative_to(ROOT).as_posix()}:{number}")
    assert bare == []
