"""Lists from which some items were taken: the places of the others as the client wrote them."""

from __future__ import annotations

from penstock.http.sifted import as_written, sifted


def test_a_place_is_that_in_the_list_as_it_was_written() -> None:
    data = {"list": sifted(["a", "b", {"c": [1]}], lambda item: item != "b"), "other": [1, 2]}
    assert data["list"] == ["a", {"c": [1]}]
    assert as_written(("list", 1, "c", 0), data) == ("list", 2, "c", 0)
    assert as_written(("list", 0), data) == ("list", 0)
    assert as_written(("other", 1), data) == ("other", 1)
    assert as_written(("list", 1, "missing", 3, "x"), data) == ("list", 2, "missing", 3, "x")


def test_a_list_that_stays_whole_is_the_same_and_an_empty_one_is_plain() -> None:
    items = [1, 2]
    assert sifted(items, lambda item: True) is items
    assert type(sifted(items, lambda item: False)) is list
