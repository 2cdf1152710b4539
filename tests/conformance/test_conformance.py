"""Our own worker and the one in JavaScript keep the rules of the protocol; the kit notices one that does not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.kit import Broken, Kit
from tests.conformance.scenarios import SCENARIOS
from tests.support.servers import start_server

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
OURS = f"{sys.executable} -m penstock worker --no-supervised --drain-s 0 --model mock=mock:step_ms=20"
SCRIPT = ROOT / "examples/worker.js"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node on PATH")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = start_server()
    yield server.url
    server.stop()


def check(url: str, command: str, name: str) -> None:
    kit = Kit(url, command)
    try:
        SCENARIOS[name](kit)
    except Exception:
        print(kit.output())  # noqa: T201
        raise
    finally:
        kit.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_our_worker_keeps_the_rules(url: str, name: str) -> None:
    check(url, OURS, name)


@needs_node
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_example_in_javascript_keeps_the_rules(url: str, name: str) -> None:
    check(url, f"{NODE} {SCRIPT}", name)


# What a worker gets wrong that was written in haste, and the scenario that says so.
MISTAKES = {
    "begins anew": ("generate(job.asked, job.tokens)", "generate(job.asked, [])", "killed"),
    "tries all suspects": ("get suspect() { return ", "get suspect() { return 0 && ", "one_suspect_at_a_time"),
    "writes without looking": (
        'run(this.redis, "append", [logKey(job.id)], ...args)',
        'this.redis.send("XADD", logKey(job.id), `${job.attempt}-${end}`, "f", frame).then(() => "ok")',
        "an_older_log",
    ),
    "keeps what has ended": ('await this.redis.send("LREM", list(this.wid), 1, id);', "", "cancelled_while_queued"),
    "ignores what it cannot do": ("else if (unable)", "else if (false)", "what_it_does_not_accept"),
    "fails what is newer": ('if (answer === "newer")', "if (false)", "a_newer_version"),
}


@needs_node
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(url: str, mistake: str, tmp_path: Path) -> None:
    right, wrong, name = MISTAKES[mistake]
    source = SCRIPT.read_text(encoding="utf-8")
    assert source.count(right) == 1
    beside = 'path.join(__dirname, "..'
    source = source.replace(right, wrong).replace(beside, f'path.join("{ROOT.as_posix()}", ".')
    script = tmp_path / "worker.js"
    script.write_text(source)
    with pytest.raises(Broken):
        check(url, f"{NODE} {script}", name)
