"""The options of `openai` before they were a table: read for one release, and shown in the new form."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.backends.openai import OpenAIBackend
from penstock.backends.options import read_options
from penstock.errors import ConfigError
from penstock.settings import ModelSpec, load_settings
from penstock.settings.models import read_models
from penstock.settings.old_options import FIELDS, new_names
from penstock.settings.toml import to_toml

OLD = """
[models.chat]
backend = "openai"
url = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
engine = "vllm"
slots = 64
tries = 2
url2 = "https://eu.example.com"
engine2 = "sglang"
key_env2 = "EU_KEY"
url3 = "https://api.openai.com"
engine3 = "openai"
model3 = "gpt-4o"
"""

NEW = """
[models.chat]
backend = "openai"
tries = 2

[[models.chat.upstreams]]
url = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
engine = "vllm"
slots = 64

[[models.chat.upstreams]]
url = "https://eu.example.com"
engine = "sglang"
key_env = "EU_KEY"

[[models.chat.upstreams]]
url = "https://api.openai.com"
engine = "openai"
model = "gpt-4o"
"""

urls = st.sampled_from(["http://a", "https://b/v2", "http://a+http://b:8000"])
values = {
    "model": st.from_regex(r"[a-z][a-z/.-]{0,8}", fullmatch=True).map(str.strip),
    "key_env": st.sampled_from(["A_KEY", "OPENAI_API_KEY"]),
    "engine": st.sampled_from(["any", "vllm", "sglang", "openai"]),
    "slots": st.integers(1, 99).map(str),
}
rows = st.fixed_dictionaries({"url": urls}, optional=values)
others = st.fixed_dictionaries(
    {}, optional={"tries": st.just("2"), "aliases": st.just("b+c"), "usage": st.just("true")}
)


@st.composite
def flat(draw: st.DrawFn) -> dict[str, str]:
    options = dict(draw(others))
    for suffix in ("", "2", "3")[: draw(st.integers(1, 3))]:
        row = draw(rows)
        options |= {name + suffix: value for name, value in row.items()}
    return dict(draw(st.permutations(list(options.items()))))


def flat_again(table: dict[str, str]) -> dict[str, str]:
    options = {}
    for option, value in table.items():
        name, _, rest = option.partition(".")
        number, _, field = rest.partition(".")
        options[(field + number.replace("1", "")) if rest else name] = value
    return options


def rows_of(flat: dict[str, str]) -> dict[str, object]:
    """The same model as a TOML file's table has it."""
    rows: list[dict[str, str]] = []
    for suffix in ("", "2", "3"):
        if row := {name: flat[name + suffix] for name in FIELDS if name + suffix in flat}:
            rows.append(row)
    plain = {name: value for name, value in flat.items() if name.rstrip("23") not in FIELDS}
    return {"backend": "openai", "upstreams": rows, **plain}


@given(flat())
def test_from_the_old_form_to_the_table_and_back_nothing_is_lost(options: dict[str, str]) -> None:
    table = new_names("openai", options)
    assume(table is not None)
    assert table is not None
    assert list(flat_again(table).items()) == list(options.items()), "in the same order"


@given(flat())
def test_the_old_form_and_the_table_give_the_same_backend(options: dict[str, str]) -> None:
    (old,) = read_models({"chat": {"backend": "openai", **options}})
    (new,) = read_models({"chat": rows_of(options)})
    (text,) = read_models(ModelSpec("chat", "openai", options).format())
    (again,) = read_models(tomllib.loads(to_toml(new))["models"])
    assert text == old
    assert again == new
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("A_KEY", "k")
        environ.setenv("OPENAI_API_KEY", "k")
        arguments = [read_options("openai", OpenAIBackend, spec.own_options) for spec in (old, new)]
    assert arguments[0] == arguments[1]
    assert old.names == new.names


def test_an_upstream_without_a_number_stays_as_it_is_written() -> None:
    spec = ModelSpec("chat", "openai", {"url": "http://a", "engine": "vllm"})
    assert read_models([spec]) == (spec,)


def test_another_backend_may_have_such_options() -> None:
    spec = ModelSpec("chat", "mine.py:Mine", {"url2": "http://a"})
    assert read_models([spec]) == (spec,)


@pytest.mark.parametrize("twice", ["upstreams.1.url", "upstreams.2.url"])
def test_an_option_under_both_names_is_refused(twice: str) -> None:
    options = {"url": "a", "url2": "b", "upstreams.1.model": "c", "upstreams.2.model": "d", twice: "e"}
    with pytest.raises(ValueError, match=rf"url2? is the old name of {twice}, which is given too"):
        read_models([ModelSpec("chat", "openai", options)])


def load(tmp_path: Path, toml: str = "", **environ: str) -> tuple[tuple[ModelSpec, ...], tuple[str, ...]]:
    (tmp_path / "penstock.toml").write_text(toml)
    settings = load_settings({"config": str(tmp_path / "penstock.toml")}, environ, tmp_path)
    return settings.models, settings.notes


def test_a_notice_shows_the_new_form_of_exactly_what_was_written(tmp_path: Path) -> None:
    models, (note,) = load(tmp_path, OLD)
    head, _, form = note.partition("\n")
    names = "url2, engine2, key_env2, url3, engine3, model3"
    assert head == (
        f"models (penstock.toml): model chat uses old names of options ({names}), which the next release refuses. "
        "The new form is"
    )
    assert [line.removeprefix("  ") for line in form.splitlines()] == NEW.strip().splitlines()
    assert load(tmp_path, NEW) == (models, ())


def test_the_notice_for_a_variable_is_text_as_the_variable_is(tmp_path: Path) -> None:
    text = "chat=openai:url=http://a,url2=http://u:SECRET@b,key_env2=sk-SECRET,slots2=4;mock=mock"
    models, (note,) = load(tmp_path, PENSTOCK_MODELS=text)
    assert note.endswith(
        "(url2, key_env2, slots2), which the next release refuses. The new form is\n"
        "  chat=openai:upstreams.1.url=http://a,upstreams.2.url=http://***@b,upstreams.2.key_env=***,upstreams.2.slots=4"
    )
    assert note.startswith("PENSTOCK_MODELS: model chat uses")
    assert models[0].options["upstreams.2.url"] == "http://u:SECRET@b"


def test_models_without_old_names_have_no_notice(tmp_path: Path) -> None:
    assert load(tmp_path, PENSTOCK_MODELS="chat=openai:url=http://a,slots=2")[1] == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("url2=http://b", "url2 without url"),
        ("model=m,url2=http://b", "url2 without url"),
        ("url=http://a,url3=http://b", "url3 without url2"),
        ("url=http://a,slots2=4", "slots2 without url2"),
        ("upstreams.1.url=http://a,engine3=vllm", "engine3 without url2"),
    ],
)
def test_a_gap_in_the_old_numbers_is_refused_in_the_old_names(tmp_path: Path, options: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"model chat: {says};"):
        load(tmp_path, PENSTOCK_MODELS=f"chat=openai:{options}")
