"""The hot path's hand-made bytes are what a packing library would make; the names are what the protocol says."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from penstock.transports.redis import keys
from penstock.transports.redis.driver.command import command
from penstock.transports.redis.frames import FramePacker
from penstock.transports.redis.scripts import SCRIPTS

LUA = Path(keys.__file__).parent / "lua"
_ids = st.text("abcXYZ0189._-", min_size=1, max_size=40)


@given(_ids, st.integers(0, 2**53), st.integers(0, 10**6), st.binary(max_size=300))
def test_packed_by_hand_is_packed_by_the_library(job_id: str, attempt: int, end: int, frame: bytes) -> None:
    packer = FramePacker()
    expected = b"".join(
        command(*words).packed
        for words in (
            ("XADD", keys.log(job_id), "NOMKSTREAM", f"{attempt}-{end}", "f", frame),
            ("PUBLISH", keys.channel(job_id), frame),
        )
    )
    assert packer.pack(job_id, attempt, end, frame) == expected
    assert packer.pack(job_id, attempt, end, frame) == expected  # from what it has kept


def test_a_packer_has_a_bounded_size() -> None:
    packer = FramePacker()
    for number in range(20_000):
        packer.pack(f"g1.{number}", 1, 1, b"x")
    assert len(packer._heads) < 10_000


def test_every_script_file_is_used_and_has_its_promise_at_its_head() -> None:
    assert {script.name for script in SCRIPTS} == {path.stem for path in LUA.glob("*.lua")}
    for script in SCRIPTS:
        shebang, promise, *rest = script.source.decode().splitlines()
        assert shebang in ("#!lua", "#!lua flags=allow-oom", "#!lua flags=no-writes,allow-oom")
        assert promise.startswith(f"-- {script.name}: ")
        head = "\n".join(line for line in rest if line.startswith("--"))
        for word in ("KEYS", "Returns"):
            assert word in head, f"{script.name}.lua does not say its {word}"


def test_scripts_that_drain_finish_or_end_work_without_memory() -> None:
    refused = {script.name for script in SCRIPTS if b"allow-oom" not in script.source.splitlines()[0]}
    assert refused == {"create", "restore", "restore_end", "enqueue", "charge", "bind_key", "book"}
