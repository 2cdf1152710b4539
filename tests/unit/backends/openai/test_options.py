"""From text to a backend: a wrong option is named, and what a model accepts is what all of its tiers honour."""

from __future__ import annotations

import pytest

from penstock.backends import build_backend
from penstock.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "option url is missing"),
        ({"url": ""}, "url is missing"),
        ({"url": "localhost:8000"}, "url must be"),
        ({"url": "ftp://h"}, "url must be http://"),
        ({"url": "http://user:SECRET@h/v1"}, "key_env names the variable"),
        ({"url": "http://h", "url3": "http://h"}, "url3 without url2"),
        ({"url": "http://h", "model2": "x"}, "url2 is missing"),
        ({"url": "http://h", "accepts": "stop+beams"}, "beams is not known"),
        ({"url": "http://h", "resumes": "maybe"}, "resumes must be"),
        ({"url": "http://h", "resumes": "prompt", "url2": "http://g", "engine2": "openai"}, "engine of tier 2"),
        ({"url": "http://h", "resumes": "prompt+messages", "engine": "tgi"}, "resumes=messages"),
        ({"url": "http://h", "health": "health"}, "health must be"),
        ({"url": "http://h", "slots": "0"}, "slots must be"),
        ({"url": "http://h", "tries": "0"}, "tries, max_failures"),
        ({"url": "http://h", "idle_s": "0"}, "idle_s .* above 0"),
        ({"url": "http://h", "engine": "gpt"}, "it must be any or vllm"),
        ({"url": "http://h", "key_env": "sk-SECRET"}, "must be the name of an environment variable"),
        ({"url": "http://h", "key_env": "SECRET_THAT_IS_A_KEY"}, "not set"),
        ({"url": "http://h", "key_env": "BROKEN_KEY"}, "cannot stand in a header"),
    ],
)
def test_a_wrong_option_is_named_and_its_secret_is_not(
    options: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN_KEY", "SECRET SECRET")
    with pytest.raises(ConfigError, match=says) as caught:
        build_backend("openai", options)
    assert "SECRET" not in caught.value.message


def test_accepted_fields_are_those_that_every_tier_honours_or_that_are_declared() -> None:
    def accepts(**options: str) -> tuple[str, ...]:
        return build_backend("openai", {"url": "http://h", **options}).capabilities.accepts

    assert set(accepts()) == {"temperature", "top_p", "stop"}
    assert {"tools", "top_k", "images", "logprobs"} <= set(accepts(engine="vllm"))
    mixed = accepts(engine="vllm", url2="http://g", engine2="openai")
    assert "tools" in mixed
    assert "top_k" not in mixed
    assert accepts(accepts="stop+seed", engine="vllm") == ("stop", "seed")


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, set()),
        ({"engine": "vllm"}, {"images"}),
        ({"engine": "openai"}, {"images", "image_urls"}),
        ({"engine": "openai", "url2": "http://g", "engine2": "vllm"}, {"images"}),
        ({"engine": "vllm", "images": "any"}, {"images", "image_urls"}),
        ({"engine": "openai", "images": "data"}, {"images"}),
        ({"engine": "vllm", "images": "none"}, set()),
        ({"accepts": "stop+images", "images": "any"}, {"images", "image_urls"}),
        ({"accepts": "stop+image_urls"}, {"image_urls"}),
    ],
)
def test_an_engine_of_ours_fetches_no_images_unless_that_is_declared(options: dict[str, str], where: set[str]) -> None:
    backend = build_backend("openai", {"url": "http://h", **options})
    assert {name for name in backend.capabilities.accepts if name.startswith("image")} == where


def test_abilities_follow_the_options() -> None:
    can = build_backend("openai", {"url": "http://h", "resumes": "prompt", "max_tokens": "9"}).capabilities
    assert (can.resumes, can.continuous, can.max_tokens) == (True, True, 9)
    assert (can.generates, can.embeds) == (True, False)
    can = build_backend("openai", {"url": "http://h", "task": "embed"}).capabilities
    assert (can.resumes, can.generates, can.embeds) == (False, False, True)
    assert "dimensions" in can.accepts
