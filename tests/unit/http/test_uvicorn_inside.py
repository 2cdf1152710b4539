"""Another uvicorn is one clear error at the start: each name that Penstock uses of it is looked for, and its shape."""

from __future__ import annotations

import ast
import asyncio
import dis
import inspect
import re
import sys
import tomllib
from pathlib import Path
from types import FunctionType

import pytest
import uvicorn

from penstock.errors import ConfigError
from penstock.http import uvicorn_inside
from penstock.http.uvicorn_inside import OWNERS, USES, WORKS_WITH, LightEvent, LightQueue, check

ROOT = Path(uvicorn_inside.__file__).parents[2]
NAMES = sorted({(use.owner, name.split()[0]) for use in USES for name in (*use.methods, *use.attributes)})


def _fake(owner: str, old: str, new: str) -> dict[str, type]:
    """uvicorn's classes, with `old` replaced by `new` in the source of one of them."""
    real = OWNERS[owner]
    source = inspect.getsource(real)
    assert old in source
    space = dict(vars(sys.modules[real.__module__]))
    exec("from __future__ import annotations\n" + source.replace(old, new), space)  # noqa: S102 - uvicorn's own code
    return {**OWNERS, owner: space[owner]}


def test_the_installed_uvicorn_has_it_all() -> None:
    check()


@pytest.mark.parametrize(("owner", "name"), [one for one in NAMES if one[1] != "__init__"])
def test_a_uvicorn_without_a_name_is_refused(owner: str, name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(_fake(owner, name, f"{name}_2"), "9.9.9")
    message = raised.value.message
    assert message.startswith("uvicorn 9.9.9 is not one that Penstock works with: ")
    assert name in message
    assert message.endswith(f"Install uvicorn[standard]{WORKS_WITH}")


@pytest.mark.parametrize(
    ("owner", "old", "new", "fault"),
    [
        ("HttpToolsProtocol", "name: bytes, value: bytes", "value: bytes", "HttpToolsProtocol.on_header takes (self,"),
        ("FlowControl", "self.write_paused = False", "self.write_paused = None", "FlowControl.write_paused is None"),
        ("RequestResponseCycle", ": bool | None = None", ": bool = False", "chunked_encoding is False at first"),
        ("RequestResponseCycle", "keep_alive: bool", "keep_alive: bool, more: int", "missing 1 required positional"),
    ],
)
def test_a_uvicorn_with_another_shape_is_refused(owner: str, old: str, new: str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(_fake(owner, old, new), "9.9.9")
    assert fault in raised.value.message


def test_the_version_is_bounded_as_the_error_tells() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"uvicorn[standard]{WORKS_WITH}" in project["dependencies"]
    assert uvicorn.__version__.startswith("0.54.")


def test_every_name_that_is_used_is_in_the_table() -> None:
    listed = {name for _, name in NAMES}
    own = {base: _own_names(owners) for base, owners in _BASES.items()}
    used: set[str] = set()
    for name in ("http1", "connection", "listener", "server"):
        for node in ast.walk(ast.parse((ROOT / f"penstock/http/{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                base = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                used |= {node.attr} & own.get(base.removeprefix("_"), set())
    assert used - listed == set()
    assert len(used) > 20, "it finds them"


# What these files call such an object; `self` is what the class inherits from.
_BASES = {
    "self": (OWNERS["HttpToolsProtocol"], OWNERS["Server"]),
    "cycle": (OWNERS["RequestResponseCycle"],),
    "running": (OWNERS["RequestResponseCycle"],),
    "flow": (OWNERS["FlowControl"],),
    "state": (OWNERS["ServerState"],),
    "server_state": (OWNERS["ServerState"],),
    "config": (OWNERS["Config"],),
}
_DOCUMENTED = {"config"}  # what a server is made with


def _own_names(owners: tuple[type, ...]) -> set[str]:
    """Methods, and attributes that a method sets."""
    functions = [one for owner in owners for one in vars(owner).values() if isinstance(one, FunctionType)]
    stored = {each.argval for one in functions for each in dis.get_instructions(one) if each.opname == "STORE_ATTR"}
    return {one.__name__ for one in functions} | stored - _DOCUMENTED


def test_no_other_file_takes_anything_from_inside_uvicorn() -> None:
    inside = re.compile(r"^ *(from uvicorn\b|import uvicorn\.)", re.MULTILINE)
    paths = [path for path in ROOT.glob("penstock/**/*.py") if inside.search(path.read_text(encoding="utf-8"))]
    assert [path.name for path in paths] == ["uvicorn_inside.py"]


async def test_a_light_event_wakes_its_waiter_and_waits_again_after_a_clear() -> None:
    event = LightEvent(is_set=True)
    await event.wait()
    for _ in range(2):
        event.clear()
        waiting = asyncio.create_task(event.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        event.set()
        await waiting


def test_a_light_queue_keeps_the_order_of_a_deque() -> None:
    queue = LightQueue()
    for number in range(3):
        queue.appendleft(number)
    assert [queue.pop() for _ in range(3)] == [0, 1, 2]
