"""docs/protocol.md names everything that is in Redis, and its example works as written."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from penstock.event import Done, Started, Tokens
from penstock.transports.redis import keys
from penstock.transports.redis.heads import heads, read_head
from penstock.transports.redis.records import FIELDS
from penstock.transports.redis.scripts import SCRIPTS
from tests.support.stores import RedisStore, new_job, new_worker, run_one

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/protocol.md").read_text()


def test_every_script_is_described() -> None:
    assert [script.name for script in SCRIPTS if f"`{script.name}.lua`" not in PAGE] == []
    assert set(re.findall(r"`(\w+)\.lua`", PAGE)) == {script.name for script in SCRIPTS}
    refused = set(re.findall(r"`(\w+)\.lua` ¤", PAGE))
    assert refused == {script.name for script in SCRIPTS if b"allow-oom" not in script.source.splitlines()[0]}


def test_every_head_has_the_keys_and_arguments_of_its_script() -> None:
    for head, script in zip(heads(), sorted(SCRIPTS, key=lambda script: script.name), strict=True):
        assert head.name == script.name
        body = "\n".join(line for line in script.source.decode().splitlines() if not line.startswith("--"))
        used = {int(place) for place in re.findall(r"KEYS\[(\d+)\]", body)}
        assert head.num_keys is None or max(used) <= head.num_keys, head.name
        told = [place.rstrip("…").partition(" to ")[2] or place.rstrip("…") for place, _ in head.argv]
        used = {int(place) for place in re.findall(r"ARGV\[(\d+)\]", body)}
        assert max(used, default=0) <= int(told[-1] if told else 0), head.name


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("-- x: y\n-- KEYS  1 a\n-- Returns 1", "first line"),
        ("#!lua\n-- KEYS  1 a\n-- Returns 1", "parts"),
        ("#!lua\n-- x: y\n-- KEYS  1 a", "parts"),
        ("#!lua\n-- x: y\n-- KEYS  1 a   3 b\n-- Returns 1", "place 3 where 2"),
        ("#!lua\n-- x: y\n-- KEYS  a\n-- Returns 1", "no place"),
    ],
)
def test_a_head_of_another_form_is_refused(wrong: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_head("x", wrong)


def test_every_key_and_channel_is_described() -> None:
    pool = keys.PoolKeys()
    names = [pool.workers, pool.gateways, pool.about, pool.clock, pool.dead]
    names += [pool.worker("<wid>"), pool.waiting("<caller>")]
    names = [name.replace(f"{{{keys.QUEUE}}}", "{Q}") for name in names]
    names += [keys.QUEUE, keys.job("<id>"), keys.log("<id>"), keys.channel("<id>"), keys.control("<wid>")]
    names += [keys.rate("<key>"), keys.once("<caller>", "<hash>"), *keys.caller("<caller>")]
    assert [name for name in names if f"`{name}`" not in PAGE] == []


async def test_every_field_is_described(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    await transport.tick("g1")
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    await transport.cancel(job.id, "client")
    await transport.emit("w1", [Done(job.id, claim.attempt, 0, finish_reason="cancelled")])
    other = new_job(stream=False)
    await transport.restore(other, "g1", ["a"], 0)
    await transport.adopt(other.id, "g2")
    written: Any = [client.hkeys(key) for key in (keys.job(job.id), keys.job(other.id), keys.PoolKeys().clock)]
    fields = {*FIELDS}.union(*written)
    assert {"restored", "readers", "unread"} <= fields
    assert len(fields) > 18
    assert [field for field in fields if f"`{field}`" not in PAGE] == []


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on PATH")
async def test_the_example_works_as_written(real: RedisStore, client: redis.Redis, tmp_path: Path) -> None:
    cli = tmp_path / "redis-cli"
    cli.write_text(f'#!/bin/sh\nexec {shutil.which("redis-cli")} -u {real.url} "$@"\n')
    cli.chmod(0o755)
    for block in ("producer", "worker"):
        (script,) = re.findall(rf"```sh {block}\n(.*?)```", PAGE, re.S)
        result = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-eu", "-c", script],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=8,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, ""), result.stdout
        assert "ERR" not in result.stdout
        client.expire("inference:queue", 60)  # a bare RPUSH sets no expiry
    record = await (await real.transport()).read("docs.1")
    assert record is not None
    assert (record.state, record.job.sampling.max_tokens) == ("done", 4)
    attempt = record.attempt
    assert record.events == (
        Started("docs.1", attempt, 0),
        Tokens("docs.1", attempt, 0, tokens=("Hi", " there")),
        Done("docs.1", attempt, 2, tokens=(".",), finish_reason="stop"),
    )
    entries: Any = client.xrange(keys.log("docs.1"))
    assert [entry for entry, _ in entries] == [f"{attempt}-0", f"{attempt}-2", f"{attempt}-18446744073709551615"]
    assert json.loads(entries[0][1]["f"])["kind"] == "started"
    assert client.lrange(keys.PoolKeys().worker("me.1"), 0, -1) == []
