"""The grammar of `--model`: whatever can be written down is read back the same."""

from __future__ import annotations

import re
import tomllib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.settings import ModelSpec, format_models, parse_models
from penstock.settings.models import ALIASES, masked, read_models, shown_value
from penstock.settings.toml import to_toml

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,20}", fullmatch=True)
words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
printable = st.characters(min_codepoint=32, max_codepoint=0x2FF).filter(str.isprintable)
values = (st.text(alphabet=r"\,;:=ab /1", max_size=12) | st.text(printable, max_size=12)).map(str.strip)
backends = (
    st.sampled_from(["mock", "examples/echo.py:Echo", "package.module:Class", "a.py:C:D", "x:", ":y", "a:b:"])
    | st.text(printable, min_size=1, max_size=12)
).filter(lambda text: text == text.strip() and text != "" and not set(text) & set(";=,\\"))
plain = st.dictionaries(words, values, max_size=3)
rows = st.lists(st.sampled_from([{"url": "http://a"}, {"url": "a,;=1", "x_2": ""}, {"x": "\\"}]), max_size=2)


def options_of(plain: dict[str, str], rows: list[dict[str, str]]) -> dict[str, str]:
    table = {f"rows.{number}.{field}": row[field] for number, row in enumerate(rows, 1) for field in row}
    return {name: value for name, value in plain.items() if name != "rows"} | table


specs = st.builds(ModelSpec, names, backends, st.builds(options_of, plain, rows))


@given(specs)
def test_formatted_values_parse_to_the_same(spec: ModelSpec) -> None:
    assert ModelSpec.parse(spec.format()) == spec


@given(st.lists(specs, min_size=1, max_size=4, unique_by=lambda spec: spec.name))
def test_so_do_several(several: list[ModelSpec]) -> None:
    assert parse_models(format_models(several)) == tuple(several)
    assert read_models([spec.format() for spec in several]) == tuple(several)


@given(specs)
def test_a_model_as_toml_reads_to_the_same(spec: ModelSpec) -> None:
    assume("backend" not in spec.options and ALIASES not in spec.options)
    toml = to_toml(spec)
    assume("***" not in toml)
    assert read_models(tomllib.loads(toml)["models"]) == (spec,)


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
        (
            "a=f.py:C:t.1.url=http://h,x=1,t.2.url=http://g",
            ModelSpec("a", "f.py:C", {"t.1.url": "http://h", "x": "1", "t.2.url": "http://g"}),
        ),
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
        "a=mock:t.0.x=1",
        "a=mock:t.01.x=1",
        "a=mock:t.1.=1",
        "a=mock:t.1=1",
        "a=mock:t.1.x.y=1",
        "a=mock:t.1.x=1,t.1.x=2",
        "a=mock:t.2.x=1",
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


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"t": {"url": "x"}}, "t must be an array of tables, each under [[models.a.t]]"),
        ({"t": [{"url": "x"}, "y"]}, "t must be an array of tables, each under [[models.a.t]]"),
        ({"t": [{"url": "x"}, {}]}, "[[models.a.t]] number 2 is empty"),
        ({"t": [{"url": [1]}]}, "option t.1.url must be text, a number, true/false, or a list of texts"),
        ({"t": [{"url": "x"}, {"u.v": "x"}]}, "'t.2.u.v' is not an option name"),
        ({"t.1.url": "x"}, "'t.1.url' is not an option name"),
        ({"t": [{"rows": [{"x": "y"}]}]}, "option t.1.rows must be text"),
    ],
)
def test_a_wrong_table_is_named(table: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_models({"a": {"backend": "mock", **table}})


def test_an_array_of_tables_is_options_with_numbers() -> None:
    toml = """
        [models.chat]
        backend = "openai"
        tries = 2
        [[models.chat.upstreams]]
        url = ["http://a", "http://b"]
        slots = 4
        [[models.chat.upstreams]]
        url = "http://c"
    """
    options = {
        "tries": "2",
        "upstreams.1.url": "http://a+http://b",
        "upstreams.1.slots": "4",
        "upstreams.2.url": "http://c",
    }
    assert read_models(tomllib.loads(toml)["models"]) == (ModelSpec("chat", "openai", options),)


def test_options_named_like_secrets_are_masked() -> None:
    text = r"m=openai:api_key=s1\,x,max_tokens=5,monkey=7,token=t,url=https://u:p@h/v1;n=x:password=y"
    assert masked(text) == r"m=openai:api_key=***,max_tokens=5,monkey=7,token=***,url=https://***@h/v1;n=x:password=***"


def test_secrets_in_a_table_are_masked_in_text_and_in_toml() -> None:
    secrets = {
        "api_key": "s1,x",
        "url": "https://u:s2@h/v1",
        "t.1.token": "s3",
        "t.2.x_password": "s4",
        "t.2.url": "a://s5@b",
    }
    variables = {"key_env": "s6-x", "t.1.key_env": "s7", "t.2.key_env": "MY_KEY_2"}
    spec = ModelSpec("m", "openai", {**secrets, **variables, "max_tokens": "5"})
    for shown in (masked(spec.format()), repr(spec), to_toml(spec), masked(format_models([spec, spec]))):
        assert not re.search(r"s\d", shown), shown
        assert "MY_KEY_2" in shown
        assert shown_value("max_tokens", "5") in shown


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
