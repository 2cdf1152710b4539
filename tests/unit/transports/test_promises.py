"""Which part of the program uses which promise of a store, and that each verb has a test that runs over every store."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from penstock.transports.base import GatewayStore, OperatorStore, Store, Transport, WorkerStore

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "penstock"
Promise: TypeAlias = type[Any]  # abstract ones, which `type[Store]` would leave out
PROMISES: tuple[Promise, ...] = (GatewayStore, WorkerStore, OperatorStore)
ALL: tuple[Promise, ...] = (Store, *PROMISES)

# What holds a store is called by these names, whatever comes before the last dot.
HELD: dict[str, dict[str, Promise]] = {
    "gateway": {"store": GatewayStore, "operators": OperatorStore},
    "api": {"store": GatewayStore, "operators": OperatorStore},
    "worker": {"store": WorkerStore, "clone": WorkerStore},
}
# It hands each of its parts the promise that the part asks for, and needs two of them itself.
COMPOSES = {"gateway/gateway.py"}


def own_verbs(promise: Promise) -> set[str]:
    return {name for name in vars(promise) if not name.startswith("_")}


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def last_name(node: ast.expr) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_")


def uses(room: str) -> Iterator[tuple[Promise, str, str]]:
    """Each use of what a store is held by, in one folder: the promise, the verb, where."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and (promise := HELD[room].get(last_name(node.value))) is not None:
                yield promise, node.attr, f"{path.relative_to(PACKAGE)}:{node.lineno} {node.attr}"


def test_no_verb_is_promised_twice() -> None:
    verbs = [verb for promise in ALL for verb in own_verbs(promise)]
    assert sorted(verbs) == sorted(set(verbs))
    assert own_verbs(Transport) == set(), "a transport is its three promises"
    assert Transport.__abstractmethods__ <= set(verbs)


def test_no_promise_grows_unseen() -> None:
    """A verb more needs a reason in docs/decisions.md; the numbers stand there."""
    sizes = {promise.__name__: len(own_verbs(promise)) for promise in ALL}
    assert sizes == {"Store": 4, "GatewayStore": 23, "WorkerStore": 11, "OperatorStore": 7}


@pytest.mark.parametrize("room", HELD)
def test_each_part_uses_the_promise_that_it_asks_for_and_no_other(room: str) -> None:
    strange = [
        (where, verb) for promise, verb, where in uses(room) if verb not in own_verbs(promise) | own_verbs(Store)
    ]
    assert strange == []


@pytest.mark.parametrize("room", HELD)
def test_no_part_takes_the_whole_transport(room: str) -> None:
    allowed = {promise.__name__ for promise in HELD[room].values()}
    forbidden = {promise.__name__ for promise in PROMISES} - allowed | {Transport.__name__}
    takes = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.id}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in COMPOSES
        for node in nodes(path)
        if isinstance(node, ast.Name) and node.id in forbidden
    ]
    assert takes == []


@pytest.mark.parametrize("promise", PROMISES)
def test_each_verb_is_used(promise: Promise) -> None:
    used = {verb for room in HELD for asked, verb, _ in uses(room) if asked is promise}
    assert own_verbs(promise) - used == set()


def test_each_verb_has_a_test_that_runs_over_every_store() -> None:
    """A test of the contract suite gets the store that it runs over as `transport` or `store`."""
    called: set[str] = set()
    for path in (ROOT / "tests/contract").glob("test_transport_*.py"):
        for test in nodes(path):
            if isinstance(test, ast.AsyncFunctionDef) and {arg.arg for arg in test.args.args} & {"transport", "store"}:
                reached = (node for node in ast.walk(test) if isinstance(node, ast.Attribute))
                called |= {node.attr for node in reached if isinstance(node.value, ast.Name)}
    assert Transport.__abstractmethods__ - called == set()
