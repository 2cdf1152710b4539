"""The marked rules of the protocol: each case holds, and fails when its rule is taken out.

A rule in a script is taken out of the script's text, one in Python by a patch. A mutation that does not change what it
names is an error of its own, so that none of them can go blind.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from penstock.event import Event
from penstock.gateway.relay.patience import Patience
from penstock.gateway.relay.relay import Relay
from penstock.gateway.relay.repair import Repairer
from penstock.gateway.relay.stream import RelayStream
from penstock.gateway.relay.table import Budget
from penstock.transports.redis import frames, scripts
from tests.contract import rules
from tests.contract.rules import Case
from tests.support.stores import RedisStore

Mutation = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Rule:
    number: int
    case: Case
    without: Mutation

    @property
    def name(self) -> str:
        return f"{self.number}-{self.case.__name__}"


def script(name: str, *edits: tuple[str, str]) -> Mutation:
    """A script without some of its text."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        (one,) = [one for one in scripts.SCRIPTS if one.name == name]
        text = one.source.decode()
        for old, new in edits:
            assert text.count(old) == 1, f"{name}.lua has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        patch.setattr(one, "source", text.encode())
        patch.setattr(one, "sha1", hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    return mutate


def python(owner: Any, name: str, new: Any) -> Mutation:
    return lambda patch: patch.setattr(owner, name, new)


def _head_that_makes_a_log(self: frames.FramePacker, job_id: str) -> tuple[bytes, bytes]:
    log, channel = f"{{inference:response:{job_id}}}:log".encode(), f"inference:response:{job_id}".encode()
    add = b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n" % (len(log), log)
    return add, b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n" % (len(channel), channel)


def _believe_it(self: Repairer, stream: RelayStream, event: Event) -> None:
    if stream.end is None and event.attempt >= stream.attempt and event.end > len(stream.tokens):
        stream.accept(event, time.monotonic())


async def _nothing(*args: Any) -> None:
    return


RULES = (
    Rule(
        1,
        rules.an_attempt_never_starts_again,
        script("claim", ("attempt = math.max(attempt + 1, now)", "attempt = attempt + 1")),
    ),
    Rule(
        1,
        rules.a_resubmission_is_above_what_its_gateway_saw,
        script("create", ("'attempt', ARGV[7]", "'attempt', 0")),
    ),
    Rule(2, rules.a_worker_makes_no_log, python(frames.FramePacker, "_head", _head_that_makes_a_log)),
    Rule(
        2,
        rules.a_log_lives_as_long_as_its_job,
        script("claim", ("redis.call('PEXPIREAT', KEYS[2], int(deadline + retention))", "")),
    ),
    Rule(
        3,
        rules.nobody_writes_behind_an_end,
        script("cancel", ("int(math.max(attempt + 1, now))", "int(attempt)"), ("'-' .. END, 'f'", "'-*', 'f'")),
    ),
    Rule(
        3,
        rules.what_ended_is_not_run_again,
        script("finish", ("'state', 'done', 'ended'", "'ended'"), ("'-' .. END, 'f'", "'-*', 'f'")),
    ),
    Rule(
        4,
        rules.a_new_subscription_believes_nothing_at_first,
        python(Relay, "invalidate_all", lambda self: None),
    ),
    Rule(4, rules.only_started_begins_an_attempt, python(Repairer, "on_event", _believe_it)),
    Rule(5, rules.a_short_log_is_restored, python(Repairer, "_restore", _nothing)),
    Rule(
        6,
        rules.an_id_whose_reply_was_lost_is_claimed,
        script("take", ("LRANGE', KEYS[2], 0, -1", "LRANGE', KEYS[2], -tonumber(ARGV[2]), -1")),
    ),
    Rule(
        6,
        rules.a_claim_whose_reply_was_lost_is_repeated,
        script("claim", ("state == 'running' and holder ~= ARGV[2]", "state == 'running'")),
    ),
    Rule(
        7,
        rules.a_second_copy_steals_nothing,
        script("claim", ("if is_taken_over and holder ~= ARGV[3] then return {'busy', holder} end", "")),
    ),
    Rule(7, rules.a_second_copy_steals_nothing, script("settle", ("if not is_live or", "if true or"))),
    Rule(
        7,
        rules.who_lost_it_is_taken_over_from,
        script("settle", (" or not redis.call('LPOS', KEYS[1], ARGV[2])", "")),
    ),
    Rule(8, rules.what_is_in_no_list_is_pushed_again, python(Patience, "is_stranded", lambda *args: False)),
    Rule(8, rules.at_most_ten_are_pushed_again_in_a_second, python(Budget, "may", lambda *args: True)),
    Rule(
        9,
        rules.deaths_without_a_token_are_poison,
        script("claim", ("then deaths = 0 else deaths = deaths + 1 end", "then deaths = 0 end")),
    ),
    Rule(
        9,
        rules.deaths_with_progress_are_not,
        script("claim", ("then deaths = 0 else deaths = deaths + 1 end", "then end deaths = deaths + 1")),
    ),
    Rule(
        9,
        rules.a_hand_back_is_no_death,
        script("claim", ("state == 'running' and holder ~= ARGV[2]", "tonumber(hash[2]) > 0 and holder ~= ARGV[2]")),
    ),
    Rule(
        14,
        rules.a_repeated_frame_is_there_once,
        script(
            "append",
            ("tonumber(tokens) < tonumber(ARGV[i + 1]) then", "true then"),
            ("STREAM', id", "STREAM', ARGV[2] .. '-*'"),
        ),
    ),
)


def test_every_marked_rule_is_here() -> None:
    assert {rule.number for rule in RULES} >= set(range(1, 10))


@pytest.mark.parametrize("case", dict.fromkeys(rule.case for rule in RULES), ids=lambda case: case.__name__)
async def test_it_holds(case: Case, real: RedisStore, client: redis.Redis) -> None:
    await case(real, client)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
async def test_without_the_rule_it_does_not(
    rule: Rule, real: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule.without(monkeypatch)
    monkeypatch.setattr(rules, "WITHIN_S", 2.0)
    with pytest.raises(AssertionError):
        await rule.case(real, client)
    client.flushall()  # what was broken may have left keys without an expiry
