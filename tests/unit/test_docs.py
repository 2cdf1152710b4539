"""The documents name code; the names must exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from bench import readme
from bench.report import newest
from penstock import Answer, Client, Status, errors
from penstock.api.native import GenerateBody
from penstock.backends.openai import OpenAIBackend, Upstream
from penstock.backends.openai.engines import EngineName
from penstock.client import Handle, Stream
from penstock.client.options import Options
from penstock.metrics import TABLE
from penstock.planner.costs import PACKAGED
from penstock.processes.worker import build_backends
from penstock.settings import Settings
from penstock.settings.about import env_name
from penstock.settings.models import read_models
from tests.chaos import report
from tests.clients import report as programs

ROOT = Path(__file__).parents[2]
_NAMED = re.compile(r"`(penstock/[\w/]+\.py)::([\w.]+)`")
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "bench/README.md"])


def _tool(name: str) -> Any:
    """A module of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _has(path: Path, dotted: str) -> bool:
    scope: list[ast.stmt] = ast.parse(path.read_text()).body
    for name in dotted.split("."):
        found = next(
            (
                node
                for node in scope
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
            ),
            None,
        )
        if found is None:
            return False
        scope = found.body
    return True


def test_the_way_of_a_request_names_code_that_exists() -> None:
    named = _NAMED.findall((ROOT / "docs/architecture.md").read_text())
    assert len(named) > 20
    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).exists() or not _has(ROOT / path, name)]
    assert missing == []


def test_every_promise_names_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 20
    missing = [
        name for name in named if not (ROOT / name[0]).exists() or (name[1] and not _has(ROOT / name[0], name[1]))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert broken == []


def test_the_page_of_the_client_names_all_of_it() -> None:
    page = (ROOT / "docs/client.md").read_text()
    for kind in (Client, Handle, Stream):
        names = [name for name in dir(kind) if not name.startswith("_")]
        assert [name for name in names if not re.search(rf"`{name}\b", page)] == []
    for name in (*Options.__annotations__, *Answer.__struct_fields__, *Status.__struct_fields__):
        assert f"`{name}`" in page, name
    for name, parameter in inspect.signature(Client).parameters.items():
        if name not in ("urls", "transport"):
            assert f"{name}={parameter.default}" in page, name


def test_the_page_of_the_native_api_has_a_row_for_every_field() -> None:
    page = (ROOT / "docs/api.md").read_text().partition("## `POST /v1/generate`")[2].partition("### A conversation")[0]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(GenerateBody.model_fields)


def _default(parameter: inspect.Parameter) -> str:
    """A pattern for how the page shows it."""
    default = parameter.default
    if default in (None, ""):
        return "no limit" if default is None else r"[^|`]+"  # in words
    if default is parameter.empty:
        return "needed"
    shown = str(default).lower() if isinstance(default, bool | str) else f"{default:g}"
    return f"`{re.escape(shown)}`"


def test_the_page_of_backends_names_every_option_with_its_default() -> None:
    page = (ROOT / "docs/backends.md").read_text()
    of_upstream, _, of_model = page.partition("### An upstream")[2].partition("### The model")
    for part, cls in ((of_upstream, Upstream), (of_model, OpenAIBackend)):
        for name, parameter in inspect.signature(cls).parameters.items():
            if name != "upstreams":
                assert re.search(rf"^\| `{name}` \| {_default(parameter)} \| ", part, re.M), name
    for engine in get_args(EngineName):
        assert f"`{engine}`" in page


def test_the_models_on_the_pages_of_configuration_and_backends_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "EU_KEY"):
        monkeypatch.setenv(name, "k")
    for page in ("docs/configuration.md", "docs/backends.md"):
        text = (ROOT / page).read_text()
        tables = [tomllib.loads(toml).get("models") for toml in re.findall(r"```toml\n(.*?)```", text, re.S)]
        lines = re.findall(r"--model '(.*?)'", text)
        assert any(tables)
        assert lines
        for models in (*filter(None, tables), *lines):
            assert build_backends(read_models(models))


def test_the_pages_on_security_name_settings_and_flags_that_exist() -> None:
    for page in ("docs/security.md", "SECURITY.md"):
        text = (ROOT / page).read_text()
        settings = {env_name(name) for name in Settings.model_fields}
        assert set(re.findall(r"PENSTOCK_[A-Z_]+", text)) - settings == set(), page
        for metric in re.findall(r"penstock_[a-z_]+_seconds", text):
            assert metric.removeprefix("penstock_") in TABLE


def test_the_readme_runs_by_line_20() -> None:
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
    assert "make serve" in head
    assert "curl -N" in head
    assert "event: token" in head


def test_the_tour_has_twenty_files_that_exist() -> None:
    """Each once, by the name that it is linked to."""
    stops = re.findall(r"^\d+\. \[`([^`]+)`\]\(\.\./([^)]+)\)", (ROOT / "docs/tour.md").read_text(), re.MULTILINE)
    assert len(set(stops)) == len(stops) == 20
    assert [(name, path) for name, path in stops if name != path or not (ROOT / path).is_file()] == []


def _anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them."""
    lines = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if re.match(r"#{1,6} ", line)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_a_heading_find_one(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#\s]*)#([^)\s]+)\)", page.read_text())
    wrong = [
        f"{name}#{anchor}" for name, anchor in links if anchor not in _anchors(page.parent / name if name else page)
    ]
    assert wrong == []


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([a-z]+\.md)\)", (ROOT / "docs/index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.search(r"([a-z_]+) +(\d{3}) +(yes|no) +([a-z_]+) ", line):
            code, status, again, kind = match.groups()
            drawn[code] = (int(status), again == "yes", kind)
    real = {code: (kind.status, kind.retryable, kind.type) for code, kind in errors.CODES.items()}
    del real["error"], real["config_error"]  # the root, and what is never sent
    assert drawn == real


def test_the_pages_give_the_measured_bytes_of_a_token_and_of_a_request() -> None:
    redis = json.loads(PACKAGED.read_text(encoding="utf-8"))["redis"]
    measured = (f"{redis['bytes_per_token']:.0f}", f"{redis['bytes_per_request']:,.0f}")
    said = {
        page.name: set(re.findall(r"([\d,]+) bytes (?:a|for a) token(?: and ([\d,]+) a request)?", page.read_text()))
        for page in PAGES
    }
    assert {name: found for name, found in said.items() if found - {measured}} == {}
    assert sum(map(bool, said.values())) >= 3


def test_the_page_of_performance_is_for_users() -> None:
    """How it is measured, and the studies, are in bench/README.md."""
    assert len((ROOT / "docs/performance.md").read_text().splitlines()) <= 200


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    assert readme.render() == readme.README.read_text(encoding="utf-8"), "run `make chaos-docs`"


def test_the_table_of_the_page_of_reliability_is_that_of_the_last_chaos_run() -> None:
    page = ROOT / "docs/reliability.md"
    made = json.loads((ROOT / "bench/results/chaos.json").read_text(encoding="utf-8"))
    assert report.quote(made, page) == page.read_text(encoding="utf-8"), "run `make chaos-docs`"


def test_a_figure_of_the_readme_is_replaced_in_its_phrase_alone() -> None:
    page = "A pause of 2.7 s, 1.2\nms later (2026-11-28). 9 ms later."
    assert readme.fill(page, ["pause of <3.1> s", "<22> ms later (<2026-12-01>)"]) == (
        "A pause of 3.1 s, 22\nms later (2026-12-01). 9 ms later."
    )
    with pytest.raises(ValueError, match="0 times instead of once"):
        readme.fill(page, ["pause of <3> ms"])


def test_the_table_of_the_page_of_clients_is_that_of_the_last_run() -> None:
    page = ROOT / "docs/clients.md"
    made = json.loads((ROOT / "bench/results/clients.json").read_text(encoding="utf-8"))
    assert programs.quote(made, page) == page.read_text(encoding="utf-8"), "run `make clients-docs`"


def test_the_readme_does_not_promise_what_the_last_chaos_run_broke() -> None:
    bench = json.loads(newest().read_text(encoding="utf-8"))
    chaos = json.loads((ROOT / "bench/results/chaos.json").read_text(encoding="utf-8"))
    next(scenario for scenario in chaos["scenarios"] if scenario["name"] == "kill_workers")["lost"] = 1
    with pytest.raises(ValueError, match="lost or repeated"):
        readme.phrases(bench, chaos)


def test_the_picture_of_the_architecture_is_small_and_described_and_has_a_dark_form() -> None:
    text = (ROOT / "docs/img/architecture.svg").read_text(encoding="utf-8")
    assert len(text) < 12_000
    assert "prefers-color-scheme: dark" in text
    root = ET.fromstring(text)
    names = {element.attrib["id"] for element in root.iter() if element.tag.endswith(("}title", "}desc"))}
    assert set(root.attrib["aria-labelledby"].split()) == names == {"title", "desc"}
    assert "inference:" not in text


def test_the_site_has_every_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) == sorted(
        page.name for page in ROOT.glob("docs/*.md")
    )


def test_the_site_holds_pages_alone_and_loads_nothing_from_another_host() -> None:
    hooks = _tool("site_hooks")
    text = "[a](../README.md#x), [b](../missing.md), ![c](../README.md), [d](api.md)"
    assert hooks.on_page_markdown(text) == "a, [b](../missing.md), ![c](../README.md), [d](api.md)"
    own = '<script src="a.js"></script><a href="https://example.org">x</a><link rel=icon href=b.png>'
    assert hooks.on_post_page(own, "page") == own
    for tag in (
        '<script src="https://h/a.js">',
        "<link rel=stylesheet href=//h/a.css>",
        "<img alt=x src='http://h/a.png'>",
    ):
        with pytest.raises(ValueError, match="another host"):
            hooks.on_post_page(own + tag, "page")


_LINES_ARE_MADE_IN = {
    "penstock/log_format.py": "make_line",
    "penstock/http/edge.py": "_log",
    "penstock/api/answer.py": "account",
    "penstock/api/answer_fields.py": "timings",
    "penstock/worker/report.py": "report",
}


def _log_fields(name: str, tree: ast.Module) -> Iterator[str]:
    """The names that a module gives to the fields of its log lines."""
    makers = _LINES_ARE_MADE_IN.get(name, "").split()
    for node in ast.walk(tree):
        keys: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef) and node.name in makers:
            for part in ast.walk(node):
                keys += part.keys if isinstance(part, ast.Dict) else []
                keys += [part.slice] if isinstance(part, ast.Subscript) else []
        elif isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
            keys += node.value.keys
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "fields":
            keys.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, verb = node.func.value, node.func.attr
            if verb == "setdefault" and isinstance(owner, ast.Attribute) and owner.attr == "fields":
                keys.append(node.args[0])
            elif name == "penstock/logs.py" and verb == "_format":
                yield from (keyword.arg for keyword in node.keywords if keyword.arg not in (None, "exc_info"))
        yield from (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def test_the_page_of_the_logs_has_every_field_of_a_line_and_no_other() -> None:
    written = {"exception", "tier"}  # `tier` comes in labels that a metric shares
    for path in sorted(ROOT.glob("penstock/**/*.py")):
        written |= set(_log_fields(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))))
    rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT / "docs/logs.md").read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented - written == set(), "no line has these"
    assert written - documented == set(), "docs/logs.md does not explain these"


_METRIC = re.compile(r"\bpenstock_(\w+?)(_bucket|_sum|_count)?\b(?:{([^}]*)})?(?![\w])")


def test_the_queries_for_monitoring_use_metrics_labels_and_buckets_that_exist() -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    queries = re.findall(r"^\| [^|]+ \| `([^`]*(?:penstock_|up|process_)[^`]*)` \|$", page, re.MULTILINE)
    queries += re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    assert len(queries) > 20
    for query in queries:
        assert query.count("(") == query.count(")"), query
        labels = {"le"}
        for name, part, selector in _METRIC.findall(query):
            spec = TABLE[name]
            assert bool(part) == bool(spec.buckets), query
            labels |= set(spec.labels)
            for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                assert label in ("le", *spec.labels), query
                assert label != "le" or float(value) in spec.buckets, query
        for group in re.findall(r"\bby \(([^)]*)\)", query):
            assert set(group.split(", ")) <= labels, query


def test_the_query_for_server_errors_names_every_code_of_one() -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    match = re.search(r'outcome=~"([^"]*)"', page)
    assert match is not None
    mine = {"config_error", "error"}  # never sent
    codes = {code for code, kind in errors.CODES.items() if kind.status >= 500} - mine - {"unsupported_task"}  # a 501
    assert set(match.group(1).split("|")) == codes


def test_the_idiom_is_counted(tmp_path: Path) -> None:
    words = _tool("words")
    assert words.wrong() == []
    page = tmp_path / "page.md"
    page.write_text("It is no answer. It is\nno text. It is now. Nobody knows.")
    words.SOURCES = {"penstock": [], "docs": [page]}
    words.ALLOWED = {"is no": (0, 1), "nobody": (0, 2)}
    more, less = words.wrong()
    assert more.startswith("docs: 'is no' occurs 2 times, 1 are allowed")
    assert less.startswith("docs: 'nobody' occurs only 1 times")
