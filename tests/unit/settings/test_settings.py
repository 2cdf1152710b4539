"""Settings: which place counts, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.errors import ConfigError
from penstock.settings import About, ModelSpec, Settings, load_settings
from penstock.settings.about import allowed, default_text, env_name, flag_name
from penstock.settings.export import to_environ


def load(tmp_path: Path, flags: dict[str, object] | None = None, **environ: str) -> Settings:
    return load_settings(flags, {f"PENSTOCK_{name}": value for name, value in environ.items()}, tmp_path)


def refusal(tmp_path: Path, flags: dict[str, object] | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, flags, **environ)
    return caught.value.message


def test_the_first_place_that_names_a_setting_counts(tmp_path: Path) -> None:
    config = tmp_path / "penstock.toml"
    config.write_text('port = 1\ndrain_s = 1\npool = "toml"\nhost = "toml"\n')
    (tmp_path / ".env").write_text(
        "# a comment\nPENSTOCK_PORT=2\nPENSTOCK_DRAIN_S=2\nexport PENSTOCK_POOL='dotenv'\nX=1\n"
    )
    settings = load(tmp_path, {"config": str(config), "port": "4", "drain_s": None}, PORT="3", DRAIN_S="3")
    assert (settings.port, settings.drain_s, settings.pool, settings.host) == (4, 3.0, "dotenv", "toml")
    assert settings.log_level == "info"
    origins = [settings.origin(name) for name in ("port", "drain_s", "pool", "host", "log_level")]
    assert origins == ["flag", "environment", ".env", "penstock.toml", "default"]
    assert settings.notes == ()


def test_the_config_file_may_be_named_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("port = 1234\n")
    assert load(tmp_path, CONFIG=str(tmp_path / "c.toml")).port == 1234


def test_the_config_file_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes("\ufeffport = 1234\r\n".encode())
    assert load(tmp_path, CONFIG=str(tmp_path / "c.toml")).port == 1234


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.org:8443",
        "app://obsidian.md",
        "tauri://localhost",
        "chrome-extension://abcdefghijklmnop",
        "vscode-webview://1a2b",
        "vscode-webview://*",
    ],
)
def test_an_origin_has_any_scheme(tmp_path: Path, origin: str) -> None:
    assert load(tmp_path, CORS_ORIGINS=f"http://a, {origin}").cors_origins == ("http://a", origin)


@pytest.mark.parametrize(
    "value",
    [
        "obsidian.md",
        "app:obsidian.md",
        "app://",
        "://a",
        "app://a/b",
        "a b://c",
        "null",
        "https://*",
        "https://*.a",
        "app://a*",
    ],
)
def test_what_is_no_origin_is_refused(tmp_path: Path, value: str) -> None:
    assert "is not an origin" in refusal(tmp_path, CORS_ORIGINS=value)


def test_constructing_reads_no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_PORT", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PENSTOCK_PORT=2\n")
    assert Settings().port == 8000
    assert load_settings().port == 1


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc] # that is the point


def test_is_set_knows_a_default_that_was_given(tmp_path: Path) -> None:
    assert load(tmp_path, METRICS_PORT="9100").is_set("metrics_port")
    assert not load(tmp_path).is_set("metrics_port")
    with pytest.raises(KeyError):
        load(tmp_path).is_set("metrics_prot")


def test_defaults_that_follow_from_others(tmp_path: Path) -> None:
    settings = load(tmp_path, HOST="::1", MAX_TOKENS_LIMIT="100", MAX_TIMEOUT_S="60", RATE_LIMIT_RPM="600")
    assert settings.metrics_host == "::1"
    assert (settings.default_max_tokens, settings.default_timeout_s, settings.rate_limit_burst) == (100, 60.0, 100)
    assert Settings().rate_limit_burst == 1
    assert (Settings().default_max_tokens, Settings().default_timeout_s) == (32_768, 600.0)


def test_without_any_model_there_is_mock(tmp_path: Path) -> None:
    assert load(tmp_path).models == (ModelSpec("mock", "mock"),)


def test_models_from_a_toml_table(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        '[models.mock]\nbackend = "mock"\nstep_ms = 5\nchain = true\n\n[models."org/x"]\nbackend = "f.py:C"\n'
    )
    models = load(tmp_path, {"config": str(config)}).models
    assert models == (ModelSpec("mock", "mock", {"step_ms": "5", "chain": "true"}), ModelSpec("org/x", "f.py:C"))


def test_model_flags_repeat(tmp_path: Path) -> None:
    models = load(tmp_path, {"models": ["a=mock", "b=mock:step_ms=1;c=mock"]}, MODELS="ignored=mock").models
    assert [spec.name for spec in models] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "http", "PENSTOCK_PORT='http': allowed is a whole number from 0 to 65535"),
        ("PORT", "65536", "from 0 to 65535"),
        ("PORT", "80.5", "from 0 to 65535"),
        ("BATCH_WINDOW_MS", "9", "PENSTOCK_BATCH_WINDOW_MS='9': allowed is a number from 10 to 30"),
        ("BATCH_WINDOW_MS", "nan", "a number from 10 to 30"),
        ("DRAIN_S", "inf", "a number from 0 to 86400"),
        ("HEADER_TIMEOUT_S", "0", "a number above 0, at most 3600"),
        ("MAX_QUEUE_DEPTH", "0", "a whole number from 1 to"),
        ("RATE_LIMIT_RPM", "1000000001", "from 0 to 1000000000"),
        ("RATE_LIMIT_RPM", "9" * 5000, "from 0 to 1000000000"),
        ("LOG_FORMAT", "xml", "PENSTOCK_LOG_FORMAT='xml': allowed is json or text"),
        ("POOL", "Blue", "PENSTOCK_POOL='Blue': allowed is a-z, 0-9 and -"),
        ("HOST", "a b", "an address or a host name"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "has host bits set"),
        ("TRUSTED_PROXIES", "proxy", "addresses or networks"),
        ("API_KEYS_FILE", "keys.yaml", "path of a .toml or .json file"),
        ("MODELS", "mock", "NAME=BACKEND"),
        ("MODELS", "a=mock;a=mock", "model a is given twice"),
        ("MODELS", "a=mock:step_ms=1,chain", "option 'chain' has no value"),
        ("MODELS", ";", "NAME=BACKEND"),
        ("DEFAULT_MAX_TOKENS", "131073", "must not be above PENSTOCK_MAX_TOKENS_LIMIT (131072)"),
        ("DEFAULT_TIMEOUT_S", "3601", "must not be above PENSTOCK_MAX_TIMEOUT_S (3600)"),
    ],
)
def test_the_error_for_a_bad_value_has_the_allowed_values(tmp_path: Path, name: str, value: str, words: str) -> None:
    message = refusal(tmp_path, None, **{name: value})
    assert words in message
    assert f"PENSTOCK_{name}" in message


def test_every_bad_value_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("max_batch_size = 0\nport = true\nprot = 1\n")
    (tmp_path / ".env").write_text("PENSTOCK_MAX_BATCHES=none\n")
    message = refusal(tmp_path, {"drain_s": "-1", "config": str(tmp_path / "c.toml")}, LOG_LEVEL="loud")
    assert "6 invalid settings" in message
    for words in (
        "--drain-s (PENSTOCK_DRAIN_S)='-1'",
        "PENSTOCK_LOG_LEVEL='loud'",
        "PENSTOCK_MAX_BATCHES (.env)='none'",
        "max_batch_size (c.toml)=0",
        "port (c.toml)=True",
        "prot (c.toml) is not a setting; did you mean port?",
    ):
        assert words in message


def test_a_bad_value_that_is_overridden_does_not_matter(tmp_path: Path) -> None:
    assert load(tmp_path, {"port": "1"}, PORT="tcp://10.0.0.1:8000").port == 1


NO_URLS = [
    *("http://h", "redis://", "redis://:hunter2@h:port", "hunter2", "redis://[hunter2", "unix://"),
    *("redis+sentinel://hunter2@a:1", "redis+cluster://", "redis+cluster://a:1,b:hunter2", "redis+more://a:1/s"),
]


@pytest.mark.parametrize("url", NO_URLS)
def test_a_secret_is_never_in_a_message(tmp_path: Path, url: str) -> None:
    message = refusal(tmp_path, REDIS_URL=url)
    assert "PENSTOCK_REDIS_URL (its value is secret): allowed is redis[s]://" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_urls_of_every_kind(tmp_path: Path, scheme: str) -> None:
    for rest in ("://h", "+sentinel://u:p@a:1,b/s/2", "+cluster://:p@a:1,[::1]:2?ssl_cert_reqs=none"):
        assert load(tmp_path, REDIS_URL=scheme + rest).redis_url is not None
    shown = load(tmp_path, REDIS_URL="redis+sentinel://u:hunter2@a,b/s?sentinel_password=hunter3").shown("redis_url")
    assert shown == "redis+sentinel://***@a,b/s?sentinel_password=***"


def test_secrets_are_hidden_wherever_settings_are_shown(tmp_path: Path) -> None:
    settings = load(
        tmp_path, REDIS_URL="redis://me:hunter2@h:1/0", MODELS="a=openai:api_key=hunter2,url=http://u:hunter2@x"
    )
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://me:hunter2@h:1/0"
    assert settings.models[0].options["api_key"] == "hunter2"
    assert settings.shown("redis_url") == "redis://***@h:1/0"
    assert settings.shown("models") == "a=openai:api_key=***,url=http://***@x"
    assert "hunter2" not in repr(settings) + str(settings)
    message = refusal(tmp_path, MODELS="a=openai:api_key=hunter2,x")
    assert "hunter2" not in message


def test_a_wrong_table_of_a_model_is_named_with_its_file(tmp_path: Path) -> None:
    config = tmp_path / "penstock.toml"
    for toml, says in (
        ("[models.chat]\nbackend = 'openai'\n[models.chat.upstreams]\nurl = 'http://h'", "must be an array of tables"),
        (
            "[models.chat]\nbackend = 'openai'\n[[models.chat.upstreams]]\n",
            "[[models.chat.upstreams]] number 1 is empty",
        ),
        ("[models.chat]\nurl = 'http://h'", 'model chat: a table with backend = "…" is needed'),
    ):
        config.write_text(toml)
        message = refusal(tmp_path, {"config": str(config)})
        assert "models (penstock.toml): model chat: " in message
        assert says in message
        assert "allowed is" not in message, "the grammar of text"


def test_models_of_a_table_reach_a_child(tmp_path: Path) -> None:
    config = tmp_path / "penstock.toml"
    upstreams = "".join(f"[[models.chat.upstreams]]\nurl = 'http://h{number}?a=1,2'\n" for number in range(11))
    config.write_text("[models.chat]\nbackend = 'openai'\ntries = 2\n" + upstreams)
    settings = load(tmp_path, {"config": str(config)})
    child = load_settings(environ=to_environ(settings), directory=tmp_path)
    assert child.models == settings.models
    assert child.models[0].options["upstreams.11.url"] == "http://h10?a=1,2"
    assert child.notes == ()


def test_a_child_of_a_process_with_old_names_has_the_new_ones(tmp_path: Path) -> None:
    settings = load(tmp_path, MODELS="chat=openai:url=http://a,url2=http://b")
    assert len(settings.notes) == 1
    child = load_settings(environ=to_environ(settings), directory=tmp_path)
    assert child.models == settings.models
    assert child.notes == ()


def test_a_service_named_penstock_is_explained(tmp_path: Path) -> None:
    message = refusal(tmp_path, PORT="tcp://10.3.2.1:8000")
    assert "PENSTOCK_PORT='tcp://10.3.2.1:8000'" in message
    assert "enableServiceLinks: false" in message


def test_variables_of_kubernetes_are_not_typing_mistakes(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        SERVICE_HOST="10.0.0.1",
        SERVICE_PORT="8000",
        SERVICE_PORT_HTTP="8000",
        PORT_8000_TCP="tcp://10.0.0.1:8000",
        PORT_8000_TCP_ADDR="10.0.0.1",
        PORT_8000_TCP_PORT="8000",
        PORT_8000_TCP_PROTO="tcp",
        GATEWAY_SERVICE_HOST="10.0.0.1",
        GATEWAY_PORT="tcp://10.0.0.1:8000",
        GATEWAY_PORT_8000_TCP="tcp://10.0.0.1:8000",
        URL="http://x",
        API_KEY="k",
        TEST_CRASH="mid_step",
    )
    assert settings.notes == ()


def test_an_unknown_variable_is_a_note_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PENSTOCK_DRIAN_S=1\nDRAIN=1\n")
    notes = load(tmp_path, PROT="1").notes
    assert notes == (
        "PENSTOCK_PROT is not a Penstock setting and is ignored; did you mean PENSTOCK_PORT?",
        "PENSTOCK_DRIAN_S (.env) is not a Penstock setting and is ignored; did you mean PENSTOCK_DRAIN_S?",
    )


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    settings = load(tmp_path, PORT="", REDIS_URL=" ", MODELS="")
    assert settings.port == 8000
    assert settings.redis_url is None
    assert not settings.is_set("port")


@pytest.mark.parametrize("name", ["api_keys_file", "rate_limit_rpm"])
def test_an_empty_value_of_a_setting_that_restricts_access_is_an_error(tmp_path: Path, name: str) -> None:
    """As an unset variable of a compose file gives it: it must not open the door."""
    for text in ("", " "):
        assert f"{env_name(name)}=''" in refusal(tmp_path, None, **{name.upper(): text})
    (tmp_path / ".env").write_text(f"{env_name(name)}=\n")
    assert f"{env_name(name)} (.env)=''" in refusal(tmp_path)
    (tmp_path / ".env").unlink()
    assert flag_name(name) in refusal(tmp_path, {name: ""})
    (tmp_path / "c.toml").write_text(f'{name} = ""\n')
    assert "c.toml" in refusal(tmp_path, {"config": str(tmp_path / "c.toml")})


def test_hosts_are_names_and_addresses(tmp_path: Path) -> None:
    settings = load(tmp_path, ALLOWED_HOSTS="gw.example.org, 192.0.2.1,[::1],fe80::1,*,")
    assert settings.allowed_hosts == ("gw.example.org", "192.0.2.1", "[::1]", "fe80::1", "*")
    for wrong in ("http://gw.example.org", "gw.example.org:80", "a b", "gw/x", "[gw]", "*.example.org"):
        assert "is not a host name or an address" in refusal(tmp_path, ALLOWED_HOSTS=wrong)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (".env", "PENSTOCK_PORT=1\nthis is not = 'a line\n", "line 2 is not NAME=VALUE"),
        ("c.toml", "port = \n", "c.toml: the configuration file cannot be read"),
        ("none.toml", None, "cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    message = refusal(tmp_path, {} if name == ".env" else {"config": str(tmp_path / name)})
    assert words in message


def test_a_flag_of_no_setting_is_refused(tmp_path: Path) -> None:
    assert "no such setting: prot" in refusal(tmp_path, {"prot": "1"})


@given(
    st.builds(
        Settings,
        host=st.sampled_from(["127.0.0.1", "::1", "example.org"]),
        port=st.integers(0, 65535),
        drain_s=st.floats(0, 1e4),
        redis_url=st.sampled_from([None, "redis://u:p@h:1/2", "unix:///run/redis.sock"]),
        pool=st.sampled_from(["", "blue-2"]),
        trusted_proxies=st.sampled_from([(), "10.0.0.0/8,::1", "192.168.1.1"]),
        allowed_hosts=st.sampled_from([(), "*", "gw.example.org,[::1]"]),
        insecure=st.booleans(),
        cors_origins=st.sampled_from([(), "*", "https://a.example,http://localhost:3000"]),
        rate_limit_rpm=st.integers(0, 10**9),
        log_format=st.sampled_from(["json", "text"]),
        models=st.sampled_from(["a=mock", r"a=f.py:C:x=1\,2;b=m:C:url=http://h:1/v1?a=b"]),
        api_keys_file=st.sampled_from([None, Path("k.toml")]),
    )
)
def test_a_child_loads_the_same_settings(settings: Settings) -> None:
    loaded = load_settings(environ=to_environ(settings), directory=Path("/nonexistent"))
    assert loaded.model_dump() == settings.model_dump()


def test_every_setting_has_a_description() -> None:
    for name, info in Settings.model_fields.items():
        it = About.of(info)
        assert it.says.endswith("."), name
        assert it.on, name
        assert allowed(info), name
        assert isinstance(default_text(info), str)
    assert env_name("port") == "PENSTOCK_PORT"
    assert (flag_name("drain_s"), flag_name("models")) == ("--drain-s", "--model")
