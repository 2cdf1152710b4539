"""`penstock plan`: more load never needs less, a cost that is missing is said, bad values are refused; and the costs
that come with the package are whole, and those of the newest measurement.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from bench.report import RESULTS
from bench.scale_report import costs_of
from penstock.cli.app import app
from penstock.cli.plan import DELIVERED_S
from penstock.errors import ConfigError
from penstock.gateway.relay.relay import DELIVERED_RETENTION_S
from penstock.planner.capacity import Capacity, Demand, carries, plan
from penstock.planner.costs import PACKAGED, ClientCosts, Costs, Origin, ProcessCosts, RedisCosts, read_costs

ABOUT = Origin(date="2026-01-02", command="c", cpu="cpu", cores=2, server="s", penstock="0", streams=[1000])
COSTS = Costs(
    about=ABOUT,
    gateway=ProcessCosts(us_per_token=50, us_per_request=256, base_mb=60, kb_per_stream=16, redis_connections=2),
    worker=ProcessCosts(us_per_token=20, us_per_request=128, base_mb=80, kb_per_stream=8, redis_connections=4),
    redis=RedisCosts(
        us_per_token=5, us_per_request=256, base_mb=10, bytes_per_token=100, bytes_per_request=1000,
        in_bytes_per_token=500, out_bytes_per_token=200,
    ),
    client=ClientCosts(bytes_per_token=150),
)  # fmt: skip

rates = st.floats(min_value=1, max_value=1e8)
counts = st.integers(min_value=1, max_value=10**7)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})


def values(found: Capacity) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in found.figures}


def known(found: Capacity) -> dict[str, float]:
    return {name: value for name, value in values(found).items() if value is not None}


# ── the arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_by_hand() -> None:
    found = values(plan(Demand(tokens_per_s=100_000, streams=2000, tokens_per_answer=256, cores=4), COSTS))
    assert found["gateway_cores"] == pytest.approx(5.1)  # 100,000 × (50 + 256 / 256) us
    assert found["gateway_processes"] == 9  # at 0.6 of a core each
    assert found["worker_cores"] == pytest.approx(2.05)
    assert found["worker_processes"] == 4
    assert found["redis_cores"] == pytest.approx(0.6)
    assert found["redis_processes"] == 1
    assert found["machines"] == 4  # 14 processes
    kept = 2000 + 100_000 / 256 * 10
    assert found["redis_memory_mb"] == pytest.approx((10 * 2**20 + kept * (256 * 100 + 1000)) / 1e6)
    assert found["gateway_memory_mb"] == pytest.approx((9 * 60 + 2000 * 16 / 1024) * 2**20 / 1e6)
    assert found["redis_connections"] == 9 * 2 + 4 * 4
    assert found["client_mb_per_s"] == pytest.approx(15)
    assert found["redis_in_mb_per_s"] == pytest.approx(50)
    assert found["redis_out_mb_per_s"] == pytest.approx(20)


def test_the_load_of_one_process_ends_where_its_number_rises() -> None:
    most = carries(5, 256, 256, 0.6)
    assert most == pytest.approx(100_000)
    assert values(plan(Demand(tokens_per_s=most * 0.999, streams=1), COSTS))["redis_processes"] == 1
    assert values(plan(Demand(tokens_per_s=most * 1.001, streams=1), COSTS))["redis_processes"] == 2


def test_connections_may_need_more_gateways_than_tokens() -> None:
    assert plan(Demand(tokens_per_s=1, streams=25_000), COSTS).value("gateway_processes") == 3


@given(rates, rates, counts, counts, st.floats(min_value=1, max_value=1e5))
def test_more_tokens_or_streams_never_need_less(
    tokens: float, more_tokens: float, streams: int, more_streams: int, length: float
) -> None:
    less = Demand(tokens_per_s=tokens, streams=streams, tokens_per_answer=length)
    more = Demand(tokens_per_s=tokens + more_tokens, streams=streams + more_streams, tokens_per_answer=length)
    for name, value in known(plan(less, COSTS)).items():
        assert known(plan(more, COSTS))[name] >= value, name


@given(rates, counts, st.floats(min_value=0.05, max_value=0.95))
def test_less_headroom_shorter_answers_and_longer_keeping_never_need_less(
    tokens: float, streams: int, headroom: float
) -> None:
    easy = known(plan(Demand(tokens_per_s=tokens, streams=streams, headroom=1.0), COSTS))
    hard = Demand(tokens_per_s=tokens, streams=streams, headroom=headroom, retention_s=60.0)
    for name, value in known(plan(hard, COSTS)).items():
        assert value >= easy[name], name
    short = known(plan(Demand(tokens_per_s=tokens, streams=streams, tokens_per_answer=1), COSTS))
    for role in ("gateway", "worker", "redis"):
        assert short[f"{role}_processes"] >= easy[f"{role}_processes"]


def test_a_missing_cost_is_reported_and_not_guessed() -> None:
    redis = msgspec.structs.replace(COSTS.redis, us_per_token=None, bytes_per_token=None)
    found = plan(Demand(tokens_per_s=1000, streams=10, cores=4), msgspec.structs.replace(COSTS, redis=redis))
    unknown = {figure.name: figure.why for figure in found.figures if figure.value is None}
    assert unknown["redis_cores"] == "not known: redis.us_per_token was not measured"
    assert unknown["redis_memory_mb"] == "not known: redis.bytes_per_token was not measured"
    assert unknown["machines"] == "not known: the number of redis processes is not known"
    assert found.value("gateway_processes") == 1
    assert not any(line.startswith("Redis") for line in found.advice)


def test_advice_names_the_load_at_which_to_split() -> None:
    def advice(tokens_per_s: float, **more: float) -> str:
        return "\n".join(plan(Demand(tokens_per_s=tokens_per_s, streams=100, **more), COSTS).advice)  # type: ignore[arg-type]

    assert "one server is enough" in advice(1000)
    assert "Split by model into 6 stacks" in advice(600_000)
    assert "several pools" not in advice(600_000)
    assert "several pools" in advice(10_000, tokens_per_answer=1)
    assert "Slots" not in advice(1000)
    assert "or run 4 workers" in advice(1000, slots=25)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens_per_s": 0.0},
        {"tokens_per_s": -1.0},
        {"tokens_per_s": math.nan},
        {"tokens_per_s": math.inf},
        {"streams": 0},
        {"tokens_per_answer": 0.5},
        {"retention_s": -1.0},
        {"headroom": 0.0},
        {"headroom": 1.1},
        {"cores": -1},
        {"slots": 0},
        {"max_connections": 0},
    ],
)
def test_a_load_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--" + next(iter(wrong)).replace("_", "-")):
        Demand(**{"tokens_per_s": 1.0, "streams": 1, **wrong})  # type: ignore[arg-type]


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_names_its_costs_and_their_origin() -> None:
    result = run("--tokens-per-s", "200000", "--streams", "5000", "--cores", "8")
    assert result.exit_code == 0, result.output
    at = read_costs().about
    for words in ("gateway processes", "worker processes", "Redis servers", "machines of 8 cores", "us of CPU a token"):
        assert words in result.output
    flat = " ".join(result.output.split())
    for words in ("5,000 streams", "781.2 requests/s", at.date, at.command, "Your engines decide"):
        assert words in flat


def test_json_is_the_same_plan(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(msgspec.json.encode(COSTS))
    flags = ["--tokens-per-s", "100000", "--streams", "2000", "--costs", str(path), "--json"]
    shown = json.loads(run(*flags).stdout)
    expected = plan(Demand(tokens_per_s=100_000, streams=2000), COSTS)
    assert list(shown["figures"]) == [figure.name for figure in expected.figures]
    assert shown["figures"]["gateway_processes"]["value"] == 9
    assert shown["demand"]["requests_per_s"] == 390.625
    assert shown["advice"] == list(expected.advice)
    assert shown["costs"]["about"]["date"] == ABOUT.date


def test_an_unknown_figure_is_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(COSTS, gateway=ProcessCosts())))
    result = run("--tokens-per-s", "1", "--streams", "1", "--costs", str(path))
    assert result.exit_code == 0
    assert "gateway.us_per_token was not measured" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tokens-per-s", "0", "--streams", "1"], "--tokens-per-s: 0 is not allowed"),
        (["--tokens-per-s", "nan", "--streams", "1"], "--tokens-per-s: nan is not allowed"),
        (["--tokens-per-s", "1", "--streams", "1", "--headroom", "2"], "the most 1"),
        (["--tokens-per-s", "1", "--streams", "1", "--costs", "nowhere.json"], "nowhere.json: No such file"),
        (["--tokens-per-s", "many", "--streams", "1"], "valid number"),
        (["--streams", "1"], "--tokens-per-s"),
    ],
)
def test_bad_values_end_with_2_and_name_themselves(flags: list[str], says: str) -> None:
    result = run(*flags)
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "truncated"), ("{}", "about"), ('{"about": 1}', "about"), ("\xff", "costs")],
)
def test_a_file_of_costs_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=says):
        read_costs(path)


def test_a_negative_or_misspelt_cost_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    for wrong in ({"us_per_token": -1}, {"us_per_tokn": 1}):
        path.write_text(json.dumps({**msgspec.to_builtins(COSTS), "gateway": wrong}), encoding="utf-8")
        with pytest.raises(ConfigError, match="gateway"):
            read_costs(path)


# ── the costs that come with it ──────────────────────────────────────────────────────────────────────────────────────


def test_the_packaged_costs_are_whole() -> None:
    costs = read_costs()
    parts = {"gateway": costs.gateway, "worker": costs.worker, "redis": costs.redis, "client": costs.client}
    missing = [f"{name}.{field}" for name, part in parts.items() for field, value in _fields(part) if value is None]
    assert missing == []
    assert len(known(plan(Demand(tokens_per_s=1000, streams=100, cores=4), costs))) == 14
    assert all(value > 0 for part in parts.values() for field, value in _fields(part) if field.startswith("us_"))


def _fields(part: msgspec.Struct) -> list[tuple[str, float]]:
    return [(name, getattr(part, name)) for name in part.__struct_fields__]


def test_the_packaged_costs_are_those_of_the_newest_measurement() -> None:
    files = sorted(RESULTS.glob("scale-*.json"))
    if not files:
        pytest.skip("no results of `python -m bench.scale` yet")
    found = json.loads(files[-1].read_text(encoding="utf-8"))
    assert json.loads(PACKAGED.read_text(encoding="utf-8")) == costs_of(found), "python -m bench.scale"


def test_the_time_that_tokens_are_kept_is_the_gateways() -> None:
    assert DELIVERED_S == DELIVERED_RETENTION_S
