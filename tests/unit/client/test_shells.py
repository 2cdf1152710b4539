"""The two shells of the client: the same methods, signatures and docstrings, and types that a checker sees in both."""

from __future__ import annotations

import inspect
from typing import Any, assert_type

import pytest

from penstock.client import Answer, AsyncClient, AsyncHandle, AsyncStream, Client, Handle, ModelInfo, Status, Stream

PAIRS = [(AsyncClient, Client), (AsyncHandle, Handle), (AsyncStream, Stream)]


def _methods(kind: type[Any]) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"}


def _shown(function: Any) -> str:
    """The signature as an editor shows it, without the word that names the shell."""
    return str(inspect.signature(function)).replace("Async", "")


@pytest.mark.parametrize(("with_await", "blocking"), PAIRS)
def test_both_shells_have_the_same_methods_with_full_signatures_and_docstrings(
    with_await: type[Any], blocking: type[Any]
) -> None:
    theirs, ours = _methods(with_await), _methods(blocking)
    assert list(theirs) == list(ours)
    for name, method in ours.items():
        assert _shown(method) == _shown(theirs[name]), name
        assert method.__doc__, name
        assert method.__doc__ == theirs[name].__doc__
        assert not inspect.iscoroutinefunction(method), name
    assert _shown(blocking.__init__) == _shown(with_await.__init__)
    assert "Unpack[Options]" in str(inspect.signature(Client.generate))


async def checked(client: Client, other: AsyncClient) -> None:
    """Never called: mypy checks it in strict mode. An `ignore` that is not needed would be an error there, too."""
    assert_type(client.generate("x", max_tokens=1), Answer)
    assert_type(await other.generate("x", max_tokens=1), Answer)
    assert_type(client.submit("x").status(), Status)
    assert_type(await (await other.submit("x")).status(), Status)
    assert_type(client.models(), list[ModelInfo])
    assert_type(await other.models(), list[ModelInfo])
    for token in client.stream("x"):
        assert_type(token, str)
    async for token in other.stream("x"):
        assert_type(token, str)
    client.generate("x", max_token=1)  # type: ignore[call-arg]
    await other.generate("x", temperature="high")  # type: ignore[arg-type]
