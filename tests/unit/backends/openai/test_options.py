"""From options to a backend: a wrong one is named, and a model accepts what all of its upstreams honour."""

from __future__ import annotations

import pytest

from penstock.backends import build_backend
from penstock.backends.openai import OpenAIBackend, Upstream
from penstock.backends.openai.engines import EngineName
from penstock.errors import ConfigError

TWO = {"upstreams.1.url": "http://h", "upstreams.2.url": "http://g"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "option url is missing"),
        ({"url": ""}, "openai: url is missing"),
        ({"url": "localhost:8000"}, "url must be"),
        ({"url": "ftp://h"}, "url must be http://"),
        ({"url": "http://user:SECRET@h/v1"}, "key_env names the variable"),
        ({**TWO, "upstreams.2.url": ""}, r"upstreams\.2\.url is missing"),
        ({**TWO, "upstreams.2.url": "h"}, r"upstreams\.2\.url must be http://"),
        ({**TWO, "upstreams.2.slots": "0"}, r"upstreams\.2\.slots must be"),
        ({**TWO, "upstreams.2.key_env": "sk-SECRET"}, r"upstreams\.2\.key_env must be the name"),
        ({**TWO, "upstreams.1.url": "http://user:SECRET@h"}, r"upstreams\.1\.url: no user, password"),
        ({"upstreams.1.url": ""}, r"openai: upstreams\.1\.url is missing"),
        ({"upstreams.1.url": "5"}, r"openai: upstreams\.1\.url must be http://"),
        ({"upstreams.1.url": "http://user:SECRET@h"}, r"openai: upstreams\.1\.url: no user, password"),
        ({"upstreams.1.url": "http://h", "upstreams.1.slots": "0"}, r"openai: upstreams\.1\.slots must be"),
        ({"upstreams.1.url": "http://h", "upstreams.1.key_env": "sk-SECRET"}, r"openai: upstreams\.1\.key_env must be"),
        ({**TWO, "upstreams.2.engin": "any"}, r"did you mean upstreams\.2\.engine\?"),
        ({"url": "http://h", "slot": "4"}, r"did you mean slots\?"),
        ({"url": "http://h", "accepts": "stop+temprature"}, "temprature is not known; did you mean temperature"),
        ({"url": "http://h", "accepts": "engine+ignore_eof"}, "ignore_eof is not known; did you mean ignore_eos"),
        ({"url": "http://h", "accepts": "stop+messages"}, "messages is not optional"),
        ({"url": "http://h", "accepts": "stop+"}, "is not the name of a field"),
        ({"url": "http://h", "resumes": "maybe"}, "resumes must be"),
        ({**TWO, "resumes": "prompt", "upstreams.2.engine": "openai"}, "the engine of upstream 2"),
        ({"url": "http://h", "resumes": "prompt+messages", "engine": "tgi"}, "resumes=messages"),
        ({"url": "http://h", "health": "health"}, "health must be"),
        ({"url": "http://h", "slots": "0"}, "openai: slots must be"),
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


def test_accepted_fields_are_those_that_every_upstream_honours_or_that_are_declared() -> None:
    def accepts(*engines: EngineName, text: str = "") -> tuple[str, ...]:
        upstreams = tuple(Upstream("http://h", engine=engine) for engine in engines)
        return OpenAIBackend(upstreams, accepts=text).capabilities.accepts

    assert set(accepts("any")) == {"temperature", "top_p", "stop"}
    assert {"tools", "top_k", "images", "logprobs"} <= set(accepts("vllm"))
    mixed = accepts("vllm", "openai")
    assert "tools" in mixed
    assert "top_k" not in mixed
    assert accepts("vllm", text="stop+seed") == ("stop", "seed")
    assert accepts("any", text="engine+ignore_eos+beams") == (*accepts("any"), "beams", "ignore_eos")
    assert {"ignore_eos", "chat_template_kwargs"} <= set(accepts("vllm", "sglang"))
    assert "structured_outputs" not in accepts("vllm", "sglang")


def test_a_backend_needs_an_upstream() -> None:
    with pytest.raises(ValueError, match="at least one with a url"):
        OpenAIBackend(())


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"engine": "any"}, set()),
        ({"engine": "vllm"}, {"images"}),
        ({"engine": "openai"}, {"images", "image_urls"}),
        ({**TWO, "upstreams.1.engine": "openai", "upstreams.2.engine": "vllm"}, {"images"}),
        ({"engine": "vllm", "images": "any"}, {"images", "image_urls"}),
        ({"engine": "openai", "images": "data"}, {"images"}),
        ({"engine": "vllm", "images": "none"}, set()),
        ({"accepts": "stop+images", "images": "any"}, {"images", "image_urls"}),
        ({"accepts": "stop+image_urls"}, {"image_urls"}),
    ],
)
def test_an_engine_of_ours_fetches_no_images_unless_that_is_declared(options: dict[str, str], where: set[str]) -> None:
    url = {} if "upstreams.1.url" in options else {"url": "http://h"}
    backend = build_backend("openai", {**url, **options})
    assert {name for name in backend.capabilities.accepts if name.startswith("image")} == where


def test_abilities_follow_the_options() -> None:
    can = build_backend("openai", {"url": "http://h", "resumes": "prompt", "max_tokens": "9"}).capabilities
    assert (can.resumes, can.continuous, can.max_tokens) == (True, True, 9)
    assert (can.generates, can.embeds) == (True, False)
    can = build_backend("openai", {"url": "http://h", "task": "embed"}).capabilities
    assert (can.resumes, can.generates, can.embeds) == (False, False, True)
    assert "dimensions" in can.accepts
