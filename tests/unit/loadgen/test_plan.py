"""Plans of `penstock bench`: shares that add up, limits and URLs read strictly, prompts as each API wants them."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penstock.errors import ConfigError
from penstock.loadgen import Plan, from_file, parse_slo, synthetic
from penstock.loadgen.html import render_html
from penstock.loadgen.plan import Prepared, request_bytes, target_of
from penstock.loadgen.report import render_table
from penstock.loadgen.result import Result, add_up
from penstock.loadgen.tally import Tally

PREPARED = [Prepared(json.dumps({"prompt": str(number), "max_tokens": 4}), 4) for number in range(3)]


@given(st.integers(1, 8), st.integers(8, 200), st.integers(8, 1000), st.floats(0, 1e4))
def test_the_shares_of_all_processes_add_up(num: int, concurrency: int, requests: int, rate: float) -> None:
    plan = Plan(url="http://h", prepared=PREPARED, concurrency=concurrency, requests=requests, rate=rate, processes=num)
    shares = [plan.share(index) for index in range(num)]
    assert sum(share.concurrency for share in shares) == concurrency
    assert sum(share.requests for share in shares) == requests
    assert sum(share.rate for share in shares) == pytest.approx(rate)
    assert len({share.seed for share in shares}) == num
    assert all({one.body for one in share.prepared} == {one.body for one in PREPARED} for share in shares)
    assert all(share.concurrency for share in shares)


def test_limits() -> None:
    assert parse_slo("ttft=200ms, itl=20,e2e=1.5s") == {"ttft": 0.2, "itl": 0.02, "e2e": 1.5}
    assert parse_slo("") == {}


@pytest.mark.parametrize(
    "text", ["ttft", "ttft=", "ttft=fast", "tpot=3ms", "itl=-1ms", "e2e=nans", "gap=infms", "itl=0"]
)
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo"):
        parse_slo(text)


def test_urls() -> None:
    assert target_of("http://h:81/v1/", "chat").path == "/v1/chat/completions"
    assert target_of("https://h/base", "completions") == target_of("https://h:443/base/v1", "completions")
    for text in ("h:80", "ftp://h", "http://", "http://h:99999"):
        with pytest.raises(ConfigError, match="URL"):
            target_of(text, "generate")


def test_a_request_is_whole_http() -> None:
    plan = Plan(url="http://[::1]:80", prepared=PREPARED, api_key="id.secret")
    data = request_bytes(target_of(plan.url, "generate"), plan, '{"prompt":"é"}')
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/generate HTTP/1.1\r\nhost: [::1]:80\r\n")
    assert b"authorization: Bearer id.secret" in head
    assert f"content-length: {len(body)}".encode() in head


def test_made_up_prompts_have_the_length_and_differ_and_come_again_with_the_seed() -> None:
    def made(seed: int) -> list[Prepared]:
        return synthetic("generate", input_tokens=20, output_tokens=7, is_stream=True, seed=seed, extra={"seed": 1})

    bodies = [json.loads(one.body) for one in made(1)]
    assert {len(body["prompt"].split()) for body in bodies} == {20}
    assert len({body["prompt"] for body in bodies}) == len(bodies)
    assert {(body["max_tokens"], body["stream"], body["seed"]) for body in bodies} == {(7, True, 1)}
    assert made(1) == made(1) != made(2)


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "max_tokens": 9}\n', encoding="utf-8")
    found = from_file("chat", path, output_tokens=5, is_stream=True, extra={"model": "m"})
    assert [one.max_tokens for one in found] == [5, 9]
    assert json.loads(found[0].body) == {
        "messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "model": "m", "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    path.write_text('{"messages": []}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="chat"):
        from_file("completions", path, output_tokens=5, is_stream=True, extra={})
    path.write_text('{"prompt": "a", "max_tokens": 0}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="max_tokens"):
        from_file("generate", path, output_tokens=5, is_stream=True, extra={})
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no prompts"):
        from_file("generate", path, output_tokens=5, is_stream=True, extra={})


def _result(url: str = "http://h", **errors: int) -> Result:
    tally = Tally()
    tally.opened_at, tally.ended_at = 1_000_000_000, 3_000_000_000
    tally.num_begun, tally.num_ok, tally.num_ended, tally.num_tokens, tally.num_good = 12, 10, 8, 80, 5
    tally.errors = dict(errors)
    tally.timeline = [(0.5, 20, 2), (1.0, 40, 4), (1.5, 60, 6)]
    for number in range(1, 11):
        tally.ttft.add(number * 1_000_000)
        tally.e2e.add(number * 10_000_000)
    tally.itl.add(0, 90)
    plan = Plan(url=url, prepared=PREPARED, processes=2, slo={"ttft": 0.05}, api_key="id.secret")
    data = json.loads(json.dumps(tally.to_dict()))
    return add_up(plan, [data, data], [0.5, 0.9])


def test_tallies_of_processes_are_added() -> None:
    found = _result(timeout=1).to_dict()
    assert (found["requests"], found["ok"], found["failed"], found["window_s"]) == (24, 20, 2, 2.0)
    assert (found["requests_per_s"], found["tokens_per_s"], found["goodput_per_s"]) == (8.0, 80.0, 5.0)
    assert found["ttft_ms"]["p50"] == pytest.approx(5.0, rel=0.01)
    assert found["ttft_ms"]["max"] == 10.0
    assert found["timeline"][-1] == (1.5, 80.0, 8.0)
    assert "secret" not in json.dumps(found)


def test_a_result_fails_when_an_answer_was_wrong_or_none_was_right() -> None:
    result = _result(timeout=1)
    assert not result.is_failure
    result.counts["num_wrong"] = 1
    assert result.is_failure
    result.counts.update(num_wrong=0, num_ok=0)
    assert result.is_failure


class _Balance(HTMLParser):
    VOID = ("meta", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)


def test_the_page_is_complete_and_escapes_its_text() -> None:
    page = render_html(_result("http://h/<script>", **{"HTTP 500 <script>": 3}))
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert {"svg", "polyline", "table"} <= parser.seen
    assert "script" not in parser.seen
    assert "secret" not in page


def test_the_page_of_nothing() -> None:
    empty = add_up(Plan(url="http://h", prepared=PREPARED), [], [])
    assert "Nothing was measured" in render_html(empty)
    assert empty.is_failure


def test_the_table_has_the_measured_values() -> None:
    console = Console(width=120, record=True, highlight=False, file=io.StringIO())
    console.print(render_table(_result(timeout=2)))
    text = console.export_text()
    for piece in ("first token", "whole answer", "goodput/s", "timeout", "90% of a core"):
        assert piece in text
