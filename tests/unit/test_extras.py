"""The names that a backend may accept."""

from __future__ import annotations

import pytest

from penstock.backends.base import OPTIONAL_FIELDS, Backend
from penstock.extras import EXTRAS, RESERVED, problem_of
from penstock.fleet import Capabilities


@pytest.mark.parametrize("name", [*OPTIONAL_FIELDS, *sorted(EXTRAS), "beams", "top_n"])
def test_a_backend_may_accept_known_fields_extras_and_new_names(name: str) -> None:
    assert problem_of(name, OPTIONAL_FIELDS) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("temprature", "did you mean temperature"),
        ("ignore_eof", "did you mean ignore_eos"),
        ("model", "is not optional"),
        ("messages", "is not optional"),
        ("", "is not the name"),
        ("a b", "is not the name"),
        ("x" * 65, "is not the name"),
    ],
)
def test_what_it_may_not_accept_is_explained(name: str, says: str) -> None:
    assert says in (problem_of(name, OPTIONAL_FIELDS) or "")


def test_no_extra_is_a_field_of_the_apis() -> None:
    assert EXTRAS.isdisjoint(OPTIONAL_FIELDS)
    assert RESERVED.isdisjoint(EXTRAS)


def test_a_backend_class_with_a_misspelt_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'min_token', which is not known; did you mean min_tokens"):

        class Wrong(Backend):
            capabilities = Capabilities(accepts=("min_token",))

            async def stream(self, job):  # type: ignore[no-untyped-def]
                yield ""


def test_a_backend_class_may_accept_extras() -> None:
    class Right(Backend):
        capabilities = Capabilities(accepts=("ignore_eos", "beams"))

        async def stream(self, job):  # type: ignore[no-untyped-def]
            yield ""

    assert Right.capabilities.accepts == ("ignore_eos", "beams", "stop")
