"""The body of a request, from its options."""

from __future__ import annotations

import pytest

from penstock.client.options import Options, body_of


def test_extras_stand_at_the_top_of_the_body() -> None:
    options: Options = {"max_tokens": 3, "extras": {"ignore_eos": True, "min_tokens": 3}}
    assert body_of("x", None, options) == {"max_tokens": 3, "ignore_eos": True, "min_tokens": 3, "prompt": "x"}
    assert body_of("x", None, {"extras": None}) == body_of("x", None, {}) == {"prompt": "x"}


@pytest.mark.parametrize("name", ["max_tokens", "prompt", "stream", "idempotency_key"])
def test_an_extra_that_is_an_option_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match=f"not extras, but options: {name}"):
        body_of("x", None, {"extras": {name: 1}})
