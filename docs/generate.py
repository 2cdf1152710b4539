"""Writes the generated pages and the blocking client; with `--check` names what is stale: `make docs`, `make lint`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from penstock import errors, metrics
from penstock.api.hints import ALL, GIVEN_BACK, HINTS, INCLUDES, NOTHING, Row
from penstock.api.provider_tools import PROVIDER_TOOLS
from penstock.backends.openai.engines import ENGINES
from penstock.event import Usage
from penstock.extras import EXTRAS
from penstock.fleet import Capabilities, Engines, WorkerInfo
from penstock.job import Job, Message, Sampling
from penstock.rich_token import Logprob, RichToken, ToolCall
from penstock.settings.render import render_env_example, render_markdown
from penstock.transports.redis.heads import Head, heads

ROOT = Path(__file__).resolve().parent.parent

_TREE_LINE = re.compile(r"([a-z_]+) +(\d{3}) +(yes|no) +([a-z_]+) +(.+)")


def error_rows() -> list[tuple[str, ...]]:
    """The tree at the head of `errors.py`: code, status, whether to try again, OpenAI type, meaning."""
    rows = [match.groups() for line in (errors.__doc__ or "").splitlines() if (match := _TREE_LINE.search(line))]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def _filled(page: str, name: str, source: str, content: str) -> str:
    """`page` with what stands between its marks for `name` written anew."""
    head, begin, rest = page.partition(f"<!-- {name}: written by `make docs` from {source} -->\n")
    _, end, tail = rest.partition(f"<!-- /{name} -->")
    if not end:
        raise ValueError(f"no marks for {name}")
    return head + begin + content + end + tail


def render_api() -> str:
    """`docs/api.md` with its tables of errors and hints written anew."""
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    rows = "".join(
        f"| {status} | `{code}` | {kind} | {again} | {when} |\n" for code, status, again, kind, when in error_rows()
    )
    table = "| status | code | type | retryable | when |\n|---|---|---|---|---|\n" + rows
    page = _filled(page, "errors", "penstock/errors.py", table)
    return _filled(page, "hints", "penstock/api/hints.py", _hints())


def render_backends() -> str:
    """`docs/backends.md` with its table of extras written anew."""
    page = (ROOT / "docs/backends.md").read_text(encoding="utf-8")
    rows = ""
    for name, engine in ENGINES.items():
        if extras := [field for field in engine.accepts if field in EXTRAS]:
            rows += f"| `{name}` | {', '.join(f'`{field}`' for field in extras)} |\n"
    table = "| engine | extras |\n|---|---|\n" + rows
    return _filled(page, "extras", "penstock/backends/openai/engines.py", table)


def _hints() -> str:
    """Three tables: the hints, the values that ask for nothing, and what is given back."""
    hints = "".join(f"| `{row.path}` | {_apis(row)} | {f'`{row.extra}`' if row.extra else ''} |\n" for row in HINTS)
    hints += "".join(f"| `{value}` in `include` | responses | |\n" for value in INCLUDES)
    nothing = "".join(
        f"| `{row.path}` | {', '.join(f'`{msgspec.json.encode(value).decode()}`' for value in row.values or ())} "
        f"| {_apis(row)} |\n"
        for row in NOTHING
    )
    back = "".join(f"| `{row.path}` | {_apis(row)} |\n" for row in GIVEN_BACK)
    tools = ", ".join(f"`{kind}`" for kind in PROVIDER_TOOLS)
    return (
        f"| hint | APIs | passed on as |\n|---|---|---|\n{hints}\n"
        f"| field | asks for nothing | APIs |\n|---|---|---|\n{nothing}\n"
        f"| given back | APIs |\n|---|---|\n{back}\n"
        f"Tools that are left out, by the beginning of their type: {tools}; and `custom`, except in messages.\n"
    )


def _apis(row: Row) -> str:
    return "all but Ollama's" if row.apis == ALL else ", ".join(row.apis)


SLOTS = {"request": "A request's slot", "queue": "A queue's slot", "own": "A slot of its own"}
OBJECTS = (Job, Sampling, Message, ToolCall, RichToken, Logprob, Usage, WorkerInfo, Capabilities, Engines)


def render_protocol() -> str:
    """`docs/protocol.md` with what it says of scripts, objects and error codes written anew."""
    page = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
    known = heads()
    groups = (
        f"### {title}\n\n" + "".join(_script(head) for head in known if head.slot == slot)
        for slot, title in SLOTS.items()
    )
    page = _filled(page, "scripts", "the heads of lua/*.lua", "".join(groups))
    page = _filled(page, "objects", "the structs in penstock/", "".join(_object(kind) for kind in OBJECTS))
    codes = "".join(f"| `{code}` | {when} |\n" for code, status, again, kind, when in error_rows())
    return _filled(page, "codes", "penstock/errors.py", "| `code` | meaning |\n|---|---|\n" + codes)


def _script(head: Head) -> str:
    """One script: what it promises, and how it is called."""
    mark = " ¤" if head.needs_memory else ""
    lines = [f"**`{head.name}.lua`{mark}** {head.promise[0].upper()}{head.promise[1:]}", ""]
    lines.append("* KEYS: " + ", ".join(f"{place} `{what}`" for place, what in head.keys))
    if head.argv:
        lines.append("* ARGV: " + ", ".join(f"{place} {_prose(what)}" for place, what in head.argv))
    lines.append(f"* Returns {_prose(head.returns)}")
    return "\n".join(lines) + "\n\n"


def _prose(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def _object(kind: type[Any]) -> str:
    """One JSON object: its fields, their types, and what they are when left out."""
    (schema,), definitions = msgspec.json.schema_components([kind])
    fields = definitions[kind.__name__] if "$ref" in schema else schema
    defaults = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    rows = []
    for name, told in fields["properties"].items():
        field = defaults[name]
        value = "required"
        if field.default is not msgspec.NODEFAULT:
            shown = msgspec.json.encode(field.default).decode()
            value = "" if shown in ("null", '""', "[]", "{}") else f"`{shown}`" if len(shown) < 12 else ""
        elif field.default_factory is not msgspec.NODEFAULT:
            value = ""
        rows.append(f"| `{name}` | {_type(told)} | {value} |\n")
    return f"**{kind.__name__}**\n\n| field | type | left out |\n|---|---|---|\n{''.join(rows)}\n"


def _type(told: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in told:
        return str(told["$ref"]).rpartition("/")[2]
    if "anyOf" in told:
        return " or ".join(_type(one) for one in told["anyOf"] if one.get("type") != "null")
    if "enum" in told:
        return ", ".join(f"`{value}`" for value in told["enum"])
    if told.get("type") == "array":
        items = [_type(one) for one in told.get("prefixItems", [told.get("items", {})])]
        return "array of " + ", ".join(items)
    if told.get("type") == "object" and isinstance(told.get("additionalProperties"), dict):
        return f"object of {_type(told['additionalProperties'])}"
    return str(told.get("type", "any value"))


# What differs between the shells of the client, as regular expressions, in this order. Other words are the same.
_SYNC = (
    (
        r"The asyncio shell.*?\n\"\"\"",
        'The blocking shell. Written by `make docs` from `aio.py`: change that file.\n"""',
    ),
    (r"one for many calls of one event loop", "one for many calls and threads"),
    (r"import asyncio\n", ""),
    (r"asyncio\.sleep", "time.sleep"),
    (r"AsyncGenerator\[str, None\]", "Generator[str, None, None]"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync (?=def|for|with)", ""),
    (r"\bawait ", ""),
    (r"\b(__)?a(?=(enter|exit|iter)__|iter_bytes|close\b|next\b|read\b)", r"\1"),
)


def render_sync_client() -> str:
    """`penstock/client/sync.py`: the asyncio shell without `async` and `await`."""
    text = (ROOT / "penstock/client/aio.py").read_text(encoding="utf-8")
    for pattern, word in _SYNC:
        text = re.sub(pattern, word, text, flags=re.DOTALL)
    for command in ("check --quiet --select I --fix", "format --quiet"):
        ruff = [sys.executable, "-m", "ruff", *command.split(), "--stdin-filename", "sync.py", "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, check=True, text=True, cwd=ROOT).stdout
    return text


PAGES: dict[str, Callable[[], str]] = {
    "docs/api.md": render_api,
    "docs/backends.md": render_backends,
    "docs/configuration.md": render_markdown,
    "docs/metrics.md": metrics.render_markdown,
    "docs/protocol.md": render_protocol,
    ".env.example": render_env_example,
    "penstock/client/sync.py": render_sync_client,
}


def stale() -> list[str]:
    """The pages that are not what the code says."""
    return [
        page
        for page, render in PAGES.items()
        if not (ROOT / page).is_file() or (ROOT / page).read_text(encoding="utf-8") != render()
    ]


def main(arguments: list[str]) -> int:
    pages = stale()
    if "--check" in arguments:
        if pages:
            print(f"stale, run `make docs`: {', '.join(pages)}", file=sys.stderr)
        return 1 if pages else 0
    for page in pages:
        (ROOT / page).write_text(PAGES[page](), encoding="utf-8")
        print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
