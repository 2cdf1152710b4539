"""The command line: flags follow the declaration, bad values end with 2 and a sentence, secrets stay hidden."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from penstock import __version__
from penstock.callers.keys import KeyRing, read_keys
from penstock.cli.app import app
from penstock.cli.flags import exit_with, explain
from penstock.errors import Unauthorized
from penstock.settings import About, CommandName, Settings
from penstock.settings.about import env_name, flag_name
from penstock.settings.declaration import sections


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("PENSTOCK_REDIS_URL", "PENSTOCK_API_KEYS_FILE", "PENSTOCK_URL", "PENSTOCK_PORT"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, arguments, env={f"PENSTOCK_{name}": value for name, value in environ.items()})


def test_version() -> None:
    assert run("--version").output == run("version").output == f"penstock {__version__}\n"


def test_the_shell_can_complete_commands() -> None:
    assert "--install-completion" in run("--help").output
    script = CliRunner().invoke(app, [], env={"_PENSTOCK_COMPLETE": "source_bash"}, prog_name="penstock").output
    assert "complete_bash" in script
    typed = {"_PENSTOCK_COMPLETE": "complete_bash", "COMP_WORDS": "penstock ga", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], env=typed, prog_name="penstock").output.split() == ["gateway"]


@pytest.mark.parametrize("command", ["serve", "gateway", "worker"])
def test_a_command_has_the_flags_of_its_settings_and_no_others(command: CommandName) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", run(command, "--help").output)  # typer decides at import whether it colours
    shown = set(re.findall(r"(--[a-z-]+)", plain.replace("…", "")))
    for name, info in Settings.model_fields.items():
        belongs = command in About.of(info).on
        mentioned = flag_name(name) in shown
        assert mentioned == belongs or name in ("redis_url", "models"), name
    assert "--config" in shown


def commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its names."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, *names, name)
        else:
            yield (*names, name), one


EVERY = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("names", EVERY, ids=" ".join)
def test_no_name_is_cut_at_any_width(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = run(*names, "--help").output
    for line in shown.splitlines():
        assert len(line) <= columns or len(line.split()) == 1 or line.lstrip().startswith("--"), line
    words = set(re.findall(r"[\w-]+", shown))
    for param in EVERY[names].params:
        assert {opt for opt in (*param.opts, *param.secondary_opts) if opt.startswith("--")} <= words
        assert not param.envvar or param.envvar in words
    for name, info in Settings.model_fields.items():
        if names[0] in About.of(info).on:
            assert {env_name(name), flag_name(name)} <= words


@pytest.mark.parametrize("names", EVERY, ids=" ".join)
def test_every_option_has_a_text_and_a_name_for_its_value(names: tuple[str, ...]) -> None:
    for param in EVERY[names].params:
        assert param.help, param.name
        assert param.metavar or param.param_type_name == "argument" or param.is_flag, param.name
    assert not re.search(r"[<{](bool|str|int|float|path|list|ID)", run(*names, "--help").output)


@pytest.mark.parametrize("command", ["serve", "gateway", "worker", "config"])
def test_settings_are_in_sections_and_the_forms_of_a_url_in_the_pages_only(command: str) -> None:
    shown = run(command, "--help").output
    titles = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert titles[0] == "Options"
    assert titles[1:] == [title for title in dict.fromkeys(sections().values()) if title in titles]
    assert {"Listening", "Store and models", "Logs"} <= set(titles)
    assert "sentinel" not in shown
    assert "docs/configuration.md" in shown


def test_help_has_sections_and_whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert re.findall(r"^(\w.*):$", run("ask", "--help").output, re.MULTILINE) == [
        *("Arguments", "Options", "Sampling", "A file of prompts")
    ]
    assert "..." not in run("--help").output.replace("[ARGS]...", "")


@pytest.mark.parametrize(
    ("command", "home", "entry"),
    [
        ("serve", "penstock.processes.serve", "run_serve"),
        ("gateway", "penstock.processes.gateway", "run_gateway"),
        ("worker", "penstock.processes.worker_parent", "run_supervised"),
    ],
)
def test_a_command_runs_its_process_with_the_settings(
    monkeypatch: pytest.MonkeyPatch, command: str, home: str, entry: str
) -> None:
    given: list[Settings] = []

    def fake(settings: Settings) -> int:
        given.append(settings)
        return 7

    module = ModuleType(home)
    setattr(module, entry, fake)
    monkeypatch.setitem(sys.modules, home, module)
    result = run(command, "--drain-s", "5", LOG_LEVEL="debug", REDIS_URL="redis://h:1", DRAIN_S="6", PROT="1")
    assert result.exit_code == 7, result.output
    assert (given[0].drain_s, given[0].log_level) == (5.0, "debug")
    assert "penstock: PENSTOCK_PROT is not a Penstock setting" in result.stderr


def test_serve_takes_models_one_flag_each(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Settings] = []
    module = ModuleType("penstock.processes.serve")
    module.run_serve = lambda settings: given.append(settings) or 0  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "penstock.processes.serve", module)
    assert run("serve", "--model", "a=mock:step_ms=1", "--model", "b=mock").exit_code == 0
    assert [(spec.name, spec.options) for spec in given[0].models] == [("a", {"step_ms": "1"}), ("b", {})]


def test_config_prints_models_with_upstreams_as_toml_without_secrets() -> None:
    models = "chat=openai:tries=2,upstreams.1.url=http://me:hunter2@a,upstreams.2.url=http://b;mock=mock"
    result = run("config", MODELS=models)
    toml = result.stdout[result.stdout.index("[models.chat]") :]
    upstreams = [{"url": "http://***@a"}, {"url": "http://b"}]
    chat = {"backend": "openai", "tries": 2, "upstreams": upstreams}
    assert tomllib.loads(toml) == {"models": {"chat": chat, "mock": {"backend": "mock"}}}
    shown = json.loads(run("config", "--json", MODELS=models).stdout)
    assert shown["models"]["value"] == models.replace("me:hunter2", "***")


def test_config_of_the_old_form_prints_the_tables_and_a_notice() -> None:
    result = run("config", MODELS="chat=openai:url=http://a,url2=http://b")
    assert "uses old names of options (url2)" in result.stderr
    toml = result.stdout[result.stdout.index("[models.chat]") :]
    assert tomllib.loads(toml)["models"]["chat"]["upstreams"] == [{"url": "http://a"}, {"url": "http://b"}]


def test_bad_settings_end_with_2_and_name_themselves() -> None:
    result = run("serve", "--port", "http", MAX_BATCHES="0")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "2 invalid settings" in result.stderr
    assert "--port (PENSTOCK_PORT)='http': allowed is a whole number from 0 to 65535" in result.stderr
    assert "PENSTOCK_MAX_BATCHES='0'" in result.stderr


@pytest.mark.parametrize("command", ["gateway", "worker"])
def test_apart_they_need_redis(command: str) -> None:
    result = run(command)
    assert result.exit_code == 2
    assert "PENSTOCK_REDIS_URL is not set" in result.stderr


def test_config_shows_everything_but_secrets() -> None:
    environ = {"REDIS_URL": "redis://me:hunter2@h:1", "MODELS": "a=openai:api_key=hunter2"}
    result = run("config", "--port", "1", **environ)
    assert result.exit_code == 0
    for words in ("redis://***@h:1", "a=openai:api_key=***", "flag", "environment", "default"):
        assert words in result.output
    assert "hunter2" not in result.output
    shown = json.loads(run("config", "--json", "--port", "1", **environ).stdout)
    assert set(shown) == set(Settings.model_fields)
    assert shown["port"] == {"value": 1, "from": "flag"}
    assert shown["redis_url"] == {"value": "redis://***@h:1", "from": "environment"}
    assert shown["api_keys_file"] == {"value": None, "from": "default"}


def test_keys_are_created_listed_rotated_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    made = run("keys", "create", "--name", "Ada", "--rpm", "60", "--model", "m", API_KEYS_FILE=str(path))
    assert made.exit_code == 0, made.output
    text = made.stdout.strip()
    key = KeyRing(path).verify(text)
    assert key is not None
    assert (key.name, key.rpm, key.models) == ("Ada", 60, ("m",))

    rotated = run("keys", "rotate", key.id, "--file", str(path)).stdout.strip()
    assert KeyRing(path).verify(rotated) is not None
    listed = run("keys", "list", "--file", str(path)).output
    assert key.id in listed
    assert "Ada" in listed
    for secret in (text, rotated):
        assert secret.partition(".")[2] not in listed
    rows = json.loads(run("keys", "list", "--json", "--file", str(path)).stdout)
    assert rows[0]["secrets"] == 2
    assert not any("hash" in name for name in rows[0])

    assert run("keys", "rotate", key.id, "--finish", "--file", str(path)).exit_code == 0
    assert KeyRing(path).verify(text) is None
    assert run("keys", "revoke", key.id, "--file", str(path)).exit_code == 0
    assert KeyRing(path).verify(rotated) is None


def test_keys_that_others_can_write_are_pointed_out_by_every_command(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    assert "chmod" not in run("keys", "create", "--file", str(path)).stderr
    (key,) = read_keys(path)
    path.chmod(0o666)
    for command in (("create",), ("list",), ("rotate", key.id), ("revoke", key.id)):
        done = run("keys", *command, "--file", str(path))
        assert done.exit_code == 0
        assert f"{path}: others than its owner may write" in done.stderr, command


def test_keys_need_a_file() -> None:
    result = run("keys", "list")
    assert result.exit_code == 2
    assert "PENSTOCK_API_KEYS_FILE" in result.stderr


def test_python_m_penstock() -> None:
    done = subprocess.run([sys.executable, "-m", "penstock", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"penstock {__version__}\n"


def test_a_process_that_stays_imports_its_own_commands_only() -> None:
    code = (
        "import sys; sys.argv = ['penstock', 'worker', '--help']\n"
        "from penstock.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('httpx2', 'rich.progress', 'penstock.client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "A worker alone" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("flag", "variable", "is_said"),
    [
        ("redis://:secret@127.0.0.1:1", "", True),
        ("redis://127.0.0.1:1", "", False),
        ("", "redis://:secret@127.0.0.1:1", False),
    ],
)
def test_a_password_in_a_flag_is_seen_by_every_user(
    monkeypatch: pytest.MonkeyPatch, flag: str, variable: str, is_said: bool
) -> None:
    monkeypatch.setattr("penstock.processes.gateway.run_gateway", lambda settings: 0)
    arguments = ["--redis-url", flag] if flag else []
    for command in (["gateway"], ["config"]):
        said = run(*command, *arguments, **({"REDIS_URL": variable} if variable else {})).output
        assert ("--redis-url holds a password" in said) == is_said, said
        assert "secret" not in said
    assert "every user of this machine can read flags" in " ".join(run("gateway", "--help").output.split())


# ── what a user meets first ──────────────────────────────────────────────────────────────────────────────────────────


def test_ask_without_a_question_shows_how_and_ends_with_2() -> None:
    for arguments in ((), ("-",), ("",)):
        asked = run("ask", *arguments)
        assert (asked.exit_code, asked.stdout) == (2, "")
        assert 'usage: penstock ask "…"' in asked.stderr


def test_a_question_without_quotes_is_shown_with_them() -> None:
    asked = run("ask", "what", "is", "this")
    assert asked.exit_code == 2
    assert 'put the question in quotes: penstock ask "what is this"' in asked.stderr


def test_answers_are_not_written_to_stdout_since_a_run_reads_its_own() -> None:
    asked = run("ask", "--file", "prompts.jsonl", "--out", "-")
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert "--out must be a file, not stdout" in asked.stderr


@pytest.mark.parametrize("command", ["ask x", "ps", "doctor", "dead list", "cancel x"])
def test_a_server_that_is_not_there_is_status_1_and_a_hint(command: str) -> None:
    asked = run(*command.split(), "--url", "http://127.0.0.1:9")
    assert (asked.exit_code, asked.stdout) == (1, "")
    assert asked.stderr.startswith("penstock: Cannot connect to http://127.0.0.1:9: ")
    assert "penstock serve" in asked.stderr


@pytest.mark.parametrize("command", ["ask x", "chat", "ps", "doctor", "dead list", "cancel x", "bench"])
def test_a_url_without_http_is_shown_as_typed_and_status_2(command: str) -> None:
    asked = run(*command.split(), "--url", "localhost:8000")
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert "'localhost:8000' is not an http:// or https:// URL" in asked.stderr
    assert "write http://localhost:8000" in asked.stderr


def test_a_file_of_questions_needs_a_server_and_leaves_no_file_without_one(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    asked = run("ask", "--file", str(prompts), "--out", str(out), "--url", "http://127.0.0.1:9")
    assert asked.exit_code == 1
    assert asked.stderr.count("Cannot connect") == 1
    assert not out.exists()


@pytest.mark.parametrize("error", [Unauthorized("No such key."), Unauthorized("An API key is needed.")])
def test_a_rejected_key_names_its_variable(error: Unauthorized) -> None:
    assert explain(error) == f"{error.message} (--api-key, PENSTOCK_API_KEY)"


def test_ctrl_c_in_a_command_is_one_line_and_130() -> None:
    command = typer.Typer()

    @command.command()
    @exit_with
    def wait() -> int:
        raise KeyboardInterrupt

    stopped = CliRunner().invoke(command, [])
    assert (stopped.exit_code, stopped.stderr) == (130, "penstock: stopped\n")


def test_ctrl_c_during_the_imports_leaves_no_traceback() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it may be ignored where the tests run
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'penstock.cli.app':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['penstock', 'ask', 'x']\n"
        "from penstock.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
