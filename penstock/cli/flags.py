"""Flags from the declaration of settings, so that no flag is spelt twice; and how a command ends."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, get_args, get_origin

import typer

from penstock import stdio
from penstock.cli.help import Group
from penstock.errors import ConfigError, PenstockError, Unauthorized
from penstock.log_format import printable
from penstock.processes.child import is_child
from penstock.settings import About, CommandName, Settings, load_settings
from penstock.settings.about import default_text, env_name, flag_name, is_secret, negated
from penstock.settings.declaration import sections

P = ParamSpec("P")

FAILED, INVALID, INTERRUPTED = 1, 2, 130  # exit statuses of commands, see docs/operations.md
CONFIGURATION = "docs/configuration.md"
_METAVARS = {"s": "SECONDS", "ms": "MILLISECONDS", "requests/min": "RPM"}


def new_app() -> typer.Typer:
    return typer.Typer(
        name="penstock",
        cls=Group,
        rich_markup_mode=None,
        help="LLM serving on a durable queue.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,  # they show local variables, and some of those are secret
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def print_error(text: str) -> None:
    """One sentence on stderr. It may hold text of a server or a file."""
    stdio.write(sys.stderr, f"penstock: {printable(text) if sys.stderr.isatty() else text}\n")


def explain(error: PenstockError) -> str:
    """The sentence for people: what the server sent, and which option or variable may help."""
    if isinstance(error, Unauthorized):
        return f"{error.message} (--api-key, PENSTOCK_API_KEY)"
    return f"{error.message} (retry in {error.retry_after_s:g} s)" if error.retry_after_s else error.message


def exit_with(run: Callable[P, int]) -> Callable[P, None]:
    """The command `run`: its return value is the exit status.

    An error is one sentence on stderr, and the status is `INVALID` if a flag, a setting or a file is to blame, else
    `FAILED`; Ctrl-C is `INTERRUPTED`.
    """

    @functools.wraps(run)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            status = run(*args, **kwargs)
        except PenstockError as error:
            print_error(explain(error))
            status = INVALID if isinstance(error, ConfigError) else FAILED
        except KeyboardInterrupt:
            print_error("stopped")
            status = INTERRUPTED
        raise typer.Exit(status)

    return command


def with_settings(*commands: CommandName) -> Callable[[Callable[Concatenate[Settings, P], int]], Callable[..., None]]:
    """A command of effective settings: gives it `--config` and a flag for each setting of `commands`."""
    names = [name for name, info in Settings.model_fields.items() if set(About.of(info).on) & set(commands)]

    def decorate(run: Callable[Concatenate[Settings, P], int]) -> Callable[..., None]:
        own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]

        def command(**given: Any) -> int:
            flags = {name: given.pop(name) for name in (*names, "config")}
            settings = load_settings(flags)
            for note in () if is_child() else (*settings.notes, *exposed(settings)):  # its parent has printed them
                print_error(note)
            return run(settings, **given)  # type: ignore[call-arg]  # `given` is what is left: `own`

        parameters = [*own, _parameter("config", str, _config_option()), *map(_flag, names)]
        command.__name__ = run.__name__
        command.__doc__ = run.__doc__
        wrapped = exit_with(command)
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def exposed(settings: Settings) -> list[str]:
    """A sentence if a flag shows a password to every user of the machine."""
    url = settings.redis_url
    if url is None or settings.origin("redis_url") != "flag" or settings.shown("redis_url") == url.get_secret_value():
        return []
    flag, variable = flag_name("redis_url"), env_name("redis_url")
    return [f"{flag} holds a password, which every user of this machine reads in `ps`; better in {variable}"]


def _flag(name: str) -> inspect.Parameter:
    info = Settings.model_fields[name]
    it = About.of(info)
    default = default_text(info)
    words = [f"env var: {env_name(name)}", f"default: {default}" if default else ""]
    exposes = " Prefer the variable: every user of this machine can read flags." if is_secret(info) else ""
    more = f" Forms: {CONFIGURATION}." if it.details else ""
    text = f"{it.says}{more}{exposes}  [{'; '.join(filter(None, words))}]"
    panel = sections()[name]
    if info.annotation is bool:
        option = typer.Option(
            f"{flag_name(name)}/{negated(name)}", help=text, show_default=False, rich_help_panel=panel
        )
        return _parameter(name, bool, option)
    option = typer.Option(flag_name(name), metavar=_metavar(name), help=text, show_default=False, rich_help_panel=panel)
    return _parameter(name, list[str] if name == "models" else str, option)


def _metavar(name: str) -> str:
    info = Settings.model_fields[name]
    if get_origin(info.annotation) is Literal:
        return "|".join(get_args(info.annotation))
    if name == "models":
        return "NAME=BACKEND[:OPTIONS]"
    return _METAVARS.get(About.of(info).unit) or About.of(info).unit.upper() or "VALUE"


def _config_option() -> Any:
    return typer.Option(
        "--config", metavar="FILE", help="A TOML file of settings.  [env var: PENSTOCK_CONFIG]", show_default=False
    )


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    # Values stay text: the declaration parses them, so that a bad one gets the same error wherever it was set.
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
