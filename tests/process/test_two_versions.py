"""Two releases side by side on one Redis: what a rolling restart looks like in its middle.

The release to come is this one with a few things changed when its interpreter starts: its jobs have a higher version,
its workers know more and say so, or it speaks another protocol.
"""

from __future__ import annotations

import os
from pathlib import Path

import httpx2
import pytest

from tests.support.programs import Program, site

pytestmark = pytest.mark.timeout(90)

FAST = ("--model", "mock=mock")
PATCH = """
import hashlib, json
from penstock import wire
from penstock.transports.redis import scripts, worker_store

def change(name, old, new):
    script = getattr(scripts, "_" + name)
    assert old in script.source, name
    script.source = script.source.replace(old, new)
    script.sha1 = hashlib.sha1(script.source).hexdigest()
"""
NEWER = """
wire.WIRE_VERSION = 2
change("claim", b"JOB_VERSION = 1 ", b"JOB_VERSION = 2 ")

def say(info, encode=worker_store.encode_json):
    about = json.loads(encode(info))
    about["region"] = "north"
    for can in about["models"].values():
        can |= {"speaks": ["tool_search"], "accepts": [*can["accepts"], "tool_search"]}
    return json.dumps(about).encode()

worker_store.encode_json = say
"""
OTHER = """
for name in ("enlist", "tick"):
    change(name, b"local PROTOCOL, LEASE_MS, GAP_MS = '1'", b"local PROTOCOL, LEASE_MS, GAP_MS = '2'")
"""


def release(folder: Path, changes: str) -> dict[str, str]:
    """The environment of a program that is of another release."""
    (folder / "sitecustomize.py").write_text(PATCH + changes)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[2]}"}


def ask(url: str, **more: object) -> httpx2.Response:
    body = {"prompt": "Tell.", "max_tokens": 8, "timeout_s": 20, **more}
    return httpx2.post(f"{url}/v1/generate", json=body, timeout=25.0)


def test_a_release_is_rolled_out_process_by_process(redis_url: str, tmp_path: Path) -> None:
    newer = release(tmp_path, NEWER)
    with site(redis_url) as built:
        old_worker = built.worker(*FAST)
        built.gateway()
        assert ask(built.gateways[0]).status_code == 200
        new_worker = built.worker(*FAST, env=newer)  # it can do more, and still comes in
        built.gateway(env=newer)
        for _ in range(4):  # jobs of both versions, whichever worker takes them first
            for url in built.gateways:
                answer = ask(url, temperature=0.5)
                assert answer.status_code == 200, answer.text
                assert answer.json()["usage"]["completion_tokens"] == 8
        assert ask(built.gateways[1], tool_search=True).status_code == 400
        assert old_worker.stop() == 0
        for url in built.gateways:
            assert ask(url).status_code == 200
        assert new_worker.stop() == 0
        built.worker(*FAST)  # back again: the release to come was not what it promised
        assert ask(built.gateways[0]).status_code == 200


def test_another_protocol_is_refused_with_a_sentence(redis_url: str, tmp_path: Path) -> None:
    other = release(tmp_path, OTHER)
    with site(redis_url) as built:
        built.worker(*FAST)
        built.gateway()
        store = ("--redis-url", redis_url)
        for program in (
            Program("worker", "--no-supervised", "--metrics-port", "0", *store, *FAST, env=other),
            Program("gateway", "--port", "0", *store, env=other),
        ):
            try:
                assert program.wait(30.0) == 2, program.output()
                said = program.output()
                assert f"This pool speaks protocol 1 and this {program.args[0]} protocol 2" in said
                assert "Traceback" not in said
            finally:
                program.close()
        assert ask(built.gateways[0]).status_code == 200
