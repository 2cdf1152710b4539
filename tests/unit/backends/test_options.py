"""From text to the arguments of a constructor: plain options, rows of tables, and every mistake by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from penstock.backends.options import read_options
from penstock.errors import ConfigError


@dataclass(frozen=True)
class Server:
    url: str
    kind: Literal["fast", "slow"] = "slow"
    slots: int | None = None

    def __post_init__(self) -> None:
        if self.slots == 0:
            raise ValueError("slots must be at least 1")


class Site:
    def __init__(self, servers: tuple[Server, ...], *, tries: int = 3, slots: float = 0.5) -> None: ...


class Alone:
    def __init__(self, servers: tuple[Server, ...] = (), names: tuple[str, ...] = ()) -> None: ...


def read(options: dict[str, str], cls: type = Site) -> dict[str, Any]:
    return read_options("site", cls, options)


def test_the_rows_of_a_table_become_a_tuple_in_the_order_of_their_numbers() -> None:
    options = {
        "servers.2.url": "b",
        "tries": "1",
        "servers.1.url": "a",
        "servers.2.kind": "fast",
        "servers.2.slots": "4",
    }
    assert read(options) == {"servers": (Server("a"), Server("b", "fast", 4)), "tries": 1}


def test_numbers_of_rows_are_ordered_as_numbers() -> None:
    options = {f"servers.{number}.url": str(number) for number in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)}
    assert [server.url for server in read(options)["servers"]] == [str(number) for number in range(1, 11)]


def test_a_single_row_may_be_written_without_the_name_of_its_table() -> None:
    assert read({"url": "a", "kind": "fast"}) == read({"servers.1.url": "a", "servers.1.kind": "fast"})


def test_a_plain_option_has_its_name_for_itself() -> None:
    assert read({"url": "a", "slots": "2"}) == {"servers": (Server("a"),), "slots": 2.0}


def test_a_table_with_a_default_may_be_left_out() -> None:
    assert read({}, Alone) == {}
    assert read({"url": "a"}, Alone) == {"servers": (Server("a"),)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "option url is missing"),
        ({"kind": "fast"}, "option url is missing"),
        ({"servers.1.url": "a", "servers.2.kind": "fast"}, "option servers.2.url is missing"),
        (
            {"servers.1.url": "a", "servers.1.kin": "fast"},
            "option servers.1.kin is not known; the fields of servers: url, kind, slots; did you mean servers.1.kind?",
        ),
        ({"servers.1.other": "a"}, "option servers.1.other is not known; the fields of servers: url, kind, slots"),
        ({"server.1.url": "a"}, "option server.1.url is not known; its options: url, kind, tries, slots"),
        ({"url2": "a"}, "option url2 is not known; its options: url, kind, tries, slots; did you mean servers.2.url?"),
        ({"url": "a", "trys": "1"}, "its options: url, kind, tries, slots; did you mean tries?"),
        ({"servers": "a"}, "servers is a table: its options are servers.NUMBER.FIELD, in TOML [[models.NAME.servers]]"),
        (
            {"servers.1.url": "a", "kind": "fast"},
            "option kind is outside the table servers; write it as servers.NUMBER.kind",
        ),
        (
            {"servers.1.url": "a", "servers.1.kind": "fats"},
            "option servers.1.kind='fats' is not allowed; it must be fast or slow; did you mean fast?",
        ),
        (
            {"servers.1.url": "a", "servers.1.slots": "x"},
            "servers.1.slots='x' is not allowed; it must be a whole number",
        ),
        ({"url": "a", "tries": "http://u:SECRET@h"}, "tries='http://***@h' is not allowed"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(options)
    assert refused.value.message.startswith("backend site: ")
    assert says in refused.value.message
    assert "SECRET" not in refused.value.message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"servers.1.url": "a", "servers.1.slots": "0"}, "servers.1.slots must be at least 1"),
        ({"servers.1.url": "a", "servers.2.url": "b", "servers.2.slots": "0"}, "servers.2.slots must be at least 1"),
        ({"url": "a", "slots": "0"}, "slots must be at least 1"),
    ],
)
def test_what_a_row_refuses_is_named_as_it_was_written(options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(options, Alone)
    assert refused.value.message == f"backend site: {says}"


def test_the_value_of_an_unknown_option_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        read({"url": "a", "servers_key": "SECRET"})
    assert "SECRET" not in refused.value.message


def test_a_tuple_of_anything_else_is_not_a_table() -> None:
    with pytest.raises(ConfigError, match="option names cannot be given as text"):
        read({"names": "a"}, Alone)
