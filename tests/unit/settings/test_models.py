"""The grammar of `--model`: whatever can be written down is read back the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.settings import ModelSpec, format_models, parse_models
from penstock.settings.models import masked, read_models

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,20}", fullmatch=True)
words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
printable = st.characters(min_codepoint=32, max_codepoint=0x2FF).filter(str.isprintable)
values = (st.text(alphabet=r"\,;:=ab /1", max_size=12) | st.text(printable, max_size=12)).map(str.strip)
backends = (
    st.sampled_from(["mock", "examples/echo.py:Echo", "package.module:Class", "a.py:C:D", "x:", ":y", "a:b:"])
    | st.text(printable, min_size=1, max_size=12)
).filter(lambda text: text == text.strip() and text != "" and not set(text) & set(";=,\\"))
specs = st.builds(ModelSpec, names, backends, st.dictionaries(words, values, max_size=4))


@given(specs)
def test_formatted_values_parse_to_the_same(spec: ModelSpec) -> None:
    assert ModelSpec.parse(spec.format()) == spec


@given(st.lists(specs, min_size=1, max_size=4, unique_by=lambda spec: spec.name))
def test_so_do_several(several: list[ModelSpec]) -> None:
    assert parse_models(format_models(several)) == tuple(several)
    assert read_models([spec.format() for spec in several]) == tuple(several)
    tables = {spec.name: {**spec.options, "backend": spec.backend} for spec in several}
    if not any("backend" in spec.options for spec in several):
        assert read_models(tables) == tuple(several)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = parse_models(text)
    except ValueError:
        return
    assert parse_models(format_models(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("mock=mock", ModelSpec("mock", "mock")),
        ("mock=mock:step_ms=5", ModelSpec("mock", "mock", {"step_ms": "5"})),
        ("echo=examples/echo.py:Echo:delay_ms=5", ModelSpec("echo", "examples/echo.py:Echo", {"delay_ms": "5"})),
        ("e=pkg.mod:Class", ModelSpec("e", "pkg.mod:Class")),
        (
            "org/m-7b:instruct=openai:base_url=http://h:8000/v1,model=org/m:latest",
            ModelSpec("org/m-7b:instruct", "openai", {"base_url": "http://h:8000/v1", "model": "org/m:latest"}),
        ),
        (r"a=b:x=1\,2\;3\\", ModelSpec("a", "b", {"x": "1,2;3\\"})),
        (r"a=b:path=C:\temp", ModelSpec("a", "b", {"path": r"C:\temp"})),
        (" a = b:x = 1 , y = 2 \n", ModelSpec("a", "b", {"x": "1", "y": "2"})),
        ("a=b:x=", ModelSpec("a", "b", {"x": ""})),
        ("a=b:q=u?x=1&y=2", ModelSpec("a", "b", {"q": "u?x=1&y=2"})),
    ],
)
def test_examples(text: str, spec: ModelSpec) -> None:
    assert ModelSpec.parse(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mock",
        "=mock",
        "a=",
        "a b=mock",
        "a{b}=mock",
        "a|b=mock",
        "a=mock:5x=1",
        "a=mock:x=1,,y=2",
        "a=mock:x=1,x=2",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ModelSpec.parse(text)


def test_a_table_needs_a_backend_and_plain_options() -> None:
    with pytest.raises(ValueError, match="backend"):
        read_models({"a": {"step_ms": 1}})
    with pytest.raises(ValueError, match="option x must be text"):
        read_models({"a": {"backend": "mock", "x": [1]}})


def test_options_named_like_secrets_are_masked() -> None:
    text = r"m=openai:api_key=s1\,x,max_tokens=5,monkey=7,token=t,url=https://u:p@h/v1;n=x:password=y"
    assert masked(text) == r"m=openai:api_key=***,max_tokens=5,monkey=7,token=***,url=https://***@h/v1;n=x:password=***"


def test_aliases_are_names_like_any_other() -> None:
    spec = ModelSpec.parse("big=mock:step_ms=1,aliases=small+org/tiny")
    assert spec.names == ("big", "small", "org/tiny")
    assert spec.own_options == {"step_ms": "1"}
    assert read_models({"big": {"backend": "mock", "step_ms": 1, "aliases": ["small", "org/tiny"]}}) == (spec,)
    for twice in ("big=mock:aliases=small;small=mock", "small=mock:aliases=small"):
        with pytest.raises(ValueError, match="small is given twice"):
            read_models(twice)
    for wrong in ("a=mock:aliases=+", "a=mock:aliases=b++c", "a=mock:aliases=b c"):
        with pytest.raises(ValueError, match="aliases is not a model name"):
            ModelSpec.parse(wrong)
