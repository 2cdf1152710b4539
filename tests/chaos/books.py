"""The books: what must hold after every scenario, whatever was done to the processes. Each finding is one sentence."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

from penstock.event import Done, Failed, fold
from penstock.wire import decode_event
from tests.chaos.http import Cut, get
from tests.chaos.ledger import REFUSALS, Entry
from tests.chaos.load import Load
from tests.chaos.plant import QUEUE, Member, Plant
from tests.support.reading import metric

MAX_SHOWN = 8
MORE_DESCRIPTORS = 6
MORE_KIB = 64 * 1024
ZERO_AT_REST = (
    *("penstock_running", "penstock_open_streams", "penstock_queue_depth", "penstock_upstream_open_streams"),
)
JOB = "}:job"
LOG = "}:log"


async def balance(plant: Plant, load: Load, settle_s: float) -> list[str]:
    """Look at everything; the load must have stopped."""
    problems = _entries(load.entries)
    problems += await _settled(plant, settle_s)
    problems += await _keys(plant)
    problems += await _deaths(plant)
    problems += await _logs(plant, {entry.request_id: entry for entry in load.entries if not entry.is_second})
    for gateway in plant.gateways:
        if gateway.is_survivor:
            problems += await _counters(gateway, load.entries)
    problems += await _at_rest(plant)
    problems += await _use(plant)
    problems += _said(plant.members)
    return problems


def _some(found: list[str]) -> list[str]:
    more = len(found) - MAX_SHOWN
    return found[:MAX_SHOWN] + ([f"… and {more} more like these"] if more > 0 else [])


def _entries(entries: list[Entry]) -> list[str]:
    """Each admitted request ended exactly once; its tokens are 0…n-1, each once, all its own."""
    found = [problem for entry in entries for problem in entry.problems()]
    ids = Counter(entry.request_id for entry in entries if entry.request_id and not entry.is_second)
    found += [f"{job_id} was given to {num} requests" for job_id, num in ids.items() if num > 1]
    return _some(found)


async def _settled(plant: Plant, within_s: float) -> list[str]:
    """The queue and all lists are empty, and every request that the store knows is done."""
    deadline = time.monotonic() + within_s
    while True:
        waiting = await plant.ask("LRANGE", QUEUE, 0, -1)
        held = await plant.held()
        undone = [
            key for key in await plant.keys(f"*{JOB}") if await plant.ask("HGET", key, "state") not in ("done", None)
        ]
        if not waiting and not held and not undone:
            return []
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    found = [f"after {within_s:g} s the queue still holds {waiting[:4]}"] if waiting else []
    found += [f"after {within_s:g} s worker {worker} still holds {ids[:4]}" for worker, ids in held.items()]
    for key in undone[:4]:
        about = await plant.ask("HGETALL", key)
        shown = {name: value for name, value in _pairs(about).items() if name != "job"}
        found.append(f"after {within_s:g} s {key} is not done: {shown}")
    return found


def _pairs(reply: Any) -> dict[str, str]:
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


async def _keys(plant: Plant) -> list[str]:
    """Every key that is left expires."""
    found = []
    for key in await plant.keys():
        if await plant.ask("PTTL", key) == -1:
            found.append(f"{key} never expires")
    return _some(found)


async def _deaths(plant: Plant) -> list[str]:
    """Where no worker was touched, none has died: what Redis loses or refuses brings no request nearer to poison."""
    workers = [member for member in plant.members if member.kind == "worker"]
    # Of a supervised one the child may have died, and another may be in its place.
    if any(worker.was_touched or not worker.is_alive or len(worker.pids()) > 1 for worker in workers):
        return []
    found = []
    for key in await plant.keys(f"*{JOB}"):
        if await plant.ask("TYPE", key) == "hash" and (num := await plant.ask("HGET", key, "all_deaths")):
            found.append(f"{key} counts {num} deaths, and no worker has died")
    return _some(found)


async def _logs(plant: Plant, entries: dict[str, Entry]) -> list[str]:
    """In every log that is left there is one end, the last entry, and the tokens that its client has."""
    found = []
    for key in await plant.keys(f"*{LOG}"):
        job_id = key.partition("response:")[2].partition("}")[0]
        reply = await plant.ask("XRANGE", key, "-", "+")
        events = [decode_event(fields["f"] if isinstance(fields, dict) else fields[1]) for _, fields in reply]
        if not events:
            continue  # it has just expired
        ends = [place for place, event in enumerate(events) if isinstance(event, Done | Failed)]
        if ends != [len(events) - 1]:
            found.append(f"the log of {job_id} has its ends at {ends}, of {len(events)} entries")
            continue
        entry, tokens = entries.get(job_id), list(fold(events).tokens)
        if entry is not None and entry.outcome == "done" and tokens != entry.tokens:
            found.append(f"the log of {job_id} has other tokens than its client: {len(tokens)}, {len(entry.tokens)}")
        if (
            entry is not None
            and entry.outcome == "left"
            and entry.is_stream
            and entry.tokens != tokens[: len(entry.tokens)]
        ):
            found.append(f"the log of {job_id} does not begin with the tokens that its client had when it left")
    return _some(found)


async def _counters(gateway: Member, entries: list[Entry]) -> list[str]:
    """admitted = completed + failed + cancelled, at a gateway that was never killed."""
    own = [entry for entry in entries if entry.gateway == gateway.name]
    sure = Counter(entry.outcome for entry in own if not entry.num_resumed)
    vague = sum(entry.num_resumed > 0 for entry in own)  # counted where its first POST went, or here
    deadline = time.monotonic() + 3.0
    while True:
        try:
            _, body = await get(gateway.url, "/metrics")
        except Cut as cut:
            return [f"{gateway.name} does not answer any more: {cut}"]
        page = body.decode()
        total = metric(page, "penstock_requests_total", endpoint="/v1/generate")
        refused = sum(
            metric(page, "penstock_requests_total", outcome=code, endpoint="/v1/generate") for code in REFUSALS
        )
        ok = metric(page, "penstock_requests_total", outcome="ok", endpoint="/v1/generate")
        cancelled = metric(page, "penstock_requests_total", outcome="cancelled", endpoint="/v1/generate")
        failed = total - refused - ok - cancelled
        admitted = sure["done"] + sure["failed"] + sure["left"]
        found = []
        if not admitted <= total - refused <= admitted + vague:
            range_ = f"{admitted} to {admitted + vague}"
            found.append(f"{gateway.name} counts {total - refused:g} ended requests, its clients {range_}")
        if not sure["done"] <= ok <= sure["done"] + sure["left"] + vague:
            found.append(f"{gateway.name} counts {ok:g} completed requests, its clients {sure['done']}")
        if not sure["failed"] <= failed <= sure["failed"] + vague:
            found.append(f"{gateway.name} counts {failed:g} failed requests, its clients {sure['failed']}")
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.1)


async def _at_rest(plant: Plant) -> list[str]:
    """Every gauge of those that lived through it is where it is when nothing is asked."""
    deadline = time.monotonic() + 5.0
    while True:
        found = []
        for member in plant.members:
            if not (member.is_survivor and member.is_alive and member.is_ready):
                continue
            try:
                _, body = await get(member.url, "/metrics")
            except Cut as cut:
                return [f"{member.name} does not answer any more: {cut}"]
            page = body.decode()
            for name in ZERO_AT_REST:
                if value := metric(page, name):
                    found.append(f"{member.name} says that {name} is {value:g}, and nothing runs")
            slots, free = metric(page, "penstock_slots"), metric(page, "penstock_slots_free")
            if slots != free:
                found.append(f"{member.name} has {free:g} of {slots:g} slots free, and nothing runs")
        if not found or time.monotonic() > deadline:
            return _some(found)
        await asyncio.sleep(0.1)


async def _use(plant: Plant) -> list[str]:
    """Descriptors and memory of those that lived through it are near what they were."""
    deadline = time.monotonic() + 5.0
    while True:
        found = []
        for member in plant.members:
            if not (member.is_survivor and member.is_alive and member.before[0]):
                continue
            (descriptors, kib), (before, kib_before) = member.use(), member.before
            if descriptors > before + MORE_DESCRIPTORS:
                found.append(f"{member.name} has {descriptors} descriptors open and had {before}")
            if kib > kib_before + MORE_KIB:
                found.append(f"{member.name} holds {kib // 1024} MiB and held {kib_before // 1024}")
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.1)


def _said(members: list[Member]) -> list[str]:
    """No process logged an exception, and none ended that should not have."""
    found = []
    for member in members:
        if member.is_survivor and not member.is_alive:
            found.append(f"{member.name} ended by itself with {member.process.returncode}")
        for line in member.output().splitlines():
            said = _decoded(line)
            if said is None:
                if "Traceback" in line:
                    found.append(f"{member.name} wrote a traceback outside its log")
            elif said.get("level") == "critical" or "exception" in said:
                last = str(said.get("exception", "")).rpartition("\n")[2]
                found.append(f"{member.name} logged {said.get('message')!r} {last}")
    return _some(found)


def _decoded(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
