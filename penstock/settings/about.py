"""The description of a setting, and the spelling of its name, default and range. Knows no single setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from penstock.settings.models import ModelSpec, format_models

CommandName = Literal["serve", "gateway", "worker"]

PREFIX = "PENSTOCK_"
EVERY: tuple[CommandName, ...] = ("serve", "gateway", "worker")


@dataclass(frozen=True, slots=True)
class About:
    """The description of a setting. `allowed` and `default` are in words, where type and value are not enough.
    `details` is in the pages, and not in `--help`.

    `guards`: it restricts access or limits. An empty variable, which is most likely a mistake, is an error then.
    """

    says: str
    on: tuple[CommandName, ...] = EVERY
    unit: str = ""
    allowed: str = ""
    default: str = ""
    details: str = ""
    guards: bool = False

    @classmethod
    def of(cls, info: FieldInfo) -> About:
        return next(item for item in info.metadata if isinstance(item, cls))


def env_name(name: str) -> str:
    return PREFIX + name.upper()


def flag_name(name: str) -> str:
    return "--model" if name == "models" else "--" + name.replace("_", "-")


def negated(name: str) -> str:
    """The flag that turns a boolean setting off."""
    return "--no-" + name.replace("_", "-")


def is_secret(info: FieldInfo) -> bool:
    return SecretStr in get_args(info.annotation)


def default_text(info: FieldInfo) -> str:
    """The default in words; empty for none."""
    return About.of(info).default or text_of(info.default)


def allowed(info: FieldInfo) -> str:
    """The allowed values in words: from the declaration if it has them, else from the type and its range."""
    if words := About.of(info).allowed:
        return words
    if get_origin(info.annotation) is Literal:
        return " or ".join(get_args(info.annotation))
    kind = "a whole number" if info.annotation is int else "a number"
    low = next((item for item in info.metadata if isinstance(item, Ge | Gt)), None)
    high = next(item.le for item in info.metadata if isinstance(item, Le))
    if isinstance(low, Gt):
        return f"{kind} above {text_of(low.gt)}, at most {text_of(high)}"
    return f"{kind} from {text_of(low.ge if low else None)} to {text_of(high)}"


def text_of(value: Any) -> str:
    """The text that parses to this value; "" for None."""
    match value:
        case None:
            return ""
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return "yes" if value else "no"
        case float():
            return repr(value).removesuffix(".0")
        case tuple():
            if all(isinstance(item, ModelSpec) for item in value):
                return format_models(value)
            return ",".join(str(item) for item in value)
        case _:
            return str(value)
