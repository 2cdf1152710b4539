"""What is done to a worker, and what must hold. Each scenario has a fresh Redis and starts its own workers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.conformance.kit import CLOCK, DEAD, Answer, Kit, Q, Started, expect, job_key, log_key

LONG = 100  # tokens: some seconds at the pace that the kit asks for
PROMPT = "Tell me of a river."

FORGET_THREE = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 4)
if string.find(newest[1][1], '-18446744073709551615', 1, true) then return end -- ended: there is nothing to go on with
for i = 1, 3 do redis.call('XDEL', KEYS[1], newest[i][1]) end
redis.call('XSETID', KEYS[1], newest[4][1])
"""

Scenario = Callable[[Kit], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(run: Scenario) -> Scenario:
    SCENARIOS[run.__name__] = run
    return run


@scenario
def plain(kit: Kit) -> None:
    """A request is answered in order, on the log and on the channel, and leaves the worker's list."""
    worker = kit.start()
    with kit.listening() as heard:
        job_id = kit.submit(PROMPT, 20)
        answer = kit.wait_finished(job_id, 20)
    logged = [fields["f"] for _, fields in kit.redis.xrange(log_key(job_id))]
    expect(heard == logged, "what is published is not, byte for byte, what is in the log")
    expect(answer.num_claims == 1 and kit.worker_of(job_id) == worker.id, "it was not claimed once, by this worker")
    expect(all(kit.redis.pttl(key(job_id)) > 0 for key in (job_key, log_key)), "a key has no expiry")
    kit.wait_empty()
    again = kit.wait_finished(kit.submit(PROMPT, 20), 20)
    expect(again.tokens == answer.tokens, "the same prompt has another answer: the kit cannot check continuations")


@scenario
def several_at_once(kit: Kit) -> None:
    """Eight requests, of several lengths, share a worker."""
    kit.start()
    jobs = {kit.submit(f"{PROMPT} {number}", 10 + number): 10 + number for number in range(8)}
    for job_id, num in jobs.items():
        kit.wait_finished(job_id, num)
    kit.wait_empty()


@scenario
def unknown_fields(kit: Kit) -> None:
    """What a newer producer says besides is ignored."""
    kit.start()
    fields = {"colour": "blue", "nested": [{"a": 1}]}
    text = {"v": 1, "hint": 7, "job": {"id": "ID", "model": "mock", "prompt": "x", "sampling": {"max_tokens": 5}}}
    kit.wait_finished(kit.submit(PROMPT, 5, fields=fields), 5)
    kit.wait_finished(kit.submit(PROMPT, 5, job=json.dumps(text)), 5)


@scenario
def cancelled_while_queued(kit: Kit) -> None:
    """An id in the queue whose request has ended is only taken off the list."""
    job_id = kit.submit(PROMPT, LONG)
    expect(kit.cancel(job_id) == "ended", "a queued job is ended at once")
    kit.start()
    kit.wait_end(kit.submit(PROMPT, 1))  # the worker has seen the ended id before this one
    kit.wait_empty()
    answer = kit.wait_end(job_id)
    expect(answer.num_claims == 0 and len(answer.frames) == 1, "an ended job was claimed")


@scenario
def cancelled_while_running(kit: Kit) -> None:
    """A running request is stopped, with `cancelled`, well before it would end."""
    kit.start()
    job_id = kit.submit(PROMPT, 1000)
    kit.wait_tokens(job_id, 5)
    expect(kit.cancel(job_id) == "marked", "a running job is marked")
    end: Any = kit.wait_end(job_id, 10.0).end
    expect((end["kind"], end.get("finish_reason")) == ("done", "cancelled"), f"it has ended with {end}")
    kit.wait_empty()


@scenario
def past_its_deadline(kit: Kit) -> None:
    """A running request ends at its deadline, with `deadline_exceeded`."""
    kit.start()
    end: Any = kit.wait_end(kit.submit(PROMPT, 1000, 1.5), 10.0).end
    expect((end["kind"], end.get("code")) == ("failed", "deadline_exceeded"), f"it has ended with {end}")
    kit.wait_empty()


@scenario
def the_same_id_four_times(kit: Kit) -> None:
    """Copies of an id, at two workers, start it once and are gone afterwards."""
    kit.start()
    kit.start()
    job_id = kit.create(PROMPT, LONG)
    for _ in range(4):
        kit.push(job_id)
    answer = kit.wait_finished(job_id, LONG)
    expect(answer.num_claims == 1, f"it was claimed {answer.num_claims} times")
    kit.wait_empty()


@scenario
def killed(kit: Kit) -> None:
    """SIGKILL: another worker goes on where the log ends."""
    reference, job_id, worker, _ = _running(kit, 2)
    worker.kill()
    _goes_on(kit, job_id, reference)


@scenario
def told_to_stop(kit: Kit) -> None:
    """SIGTERM: the work is handed back at once, no death is counted, and the process ends."""
    reference, job_id, worker, _ = _running(kit, 2)
    worker.process.send_signal(signal.SIGTERM)
    _goes_on(kit, job_id, reference)
    expect(kit.redis.hget(job_key(job_id), "all_deaths") is None, "a hand-back was counted as a death")
    kit.until(lambda: worker.process.poll() is not None, "the process to end", 15.0)
    expect(worker.id not in kit.live(), "the lease of a worker that has stopped still holds")


@scenario
def frozen(kit: Kit) -> None:
    """SIGSTOP past the lease: another goes on, what the sleeper writes late is not believed, and it comes back anew."""
    reference, job_id, worker, others = _running(kit, 2)
    (other,) = others
    worker.process.send_signal(signal.SIGSTOP)
    kit.until(lambda: kit.worker_of(job_id) == other.id, "the other worker to go on", 20.0)
    worker.process.send_signal(signal.SIGCONT)
    _goes_on(kit, job_id, reference)
    kit.until(lambda: len(kit.live() - {worker.id, other.id}) == 1, "the sleeper to enlist under a new id", 20.0)
    expect(worker.id not in kit.live(), "the sleeper uses its old id")
    other.kill()
    kit.wait_finished(kit.submit(PROMPT, 10), 10)
    kit.wait_empty()


@scenario
def cut_off(kit: Kit) -> None:
    """Every connection is cut, three times: nothing is lost, and the worker serves on."""
    reference, job_id, _, _ = _running(kit)
    for num in (30, 50, 70):
        kit.wait_tokens(job_id, num)
        _cut(kit)
    answer = kit.wait_finished(job_id, LONG)
    expect(answer.tokens == reference, "the answer is another one")
    kit.wait_finished(kit.submit(PROMPT, 10), 10)
    kit.wait_empty()


@scenario
def redis_forgets(kit: Kit) -> None:
    """FLUSHALL: the worker stops, and goes on once the producer has given the request back."""
    reference, job_id, worker, _ = _running(kit)
    seen = kit.wait_tokens(job_id, 40)
    kit.redis.flushall()
    kit.until(lambda: worker.id in kit.live(), "the worker to be known again")  # some steps later: none makes a log
    expect(not kit.redis.exists(log_key(job_id)), "a frame has made a log that Redis had forgotten")
    kit.restore(job_id, PROMPT, LONG, seen)
    answer = kit.wait_finished(job_id, LONG)
    expect(answer.tokens == reference, "the answer is another one")
    kit.wait_empty()


@scenario
def an_older_log(kit: Kit) -> None:
    """Redis comes back without the newest entries: no hole is written."""
    reference, job_id, _, _ = _running(kit)
    for _ in range(3):
        num = len(kit.answer(job_id).tokens)
        # In one transaction, as a server that starts again has it; the entries' numbers are free again there.
        cut = kit.redis.pipeline()
        cut.eval(FORGET_THREE, 1, log_key(job_id))
        cut.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        cut.execute()
        if kit.state(job_id) == "done":
            break
        _until_it_goes_on(kit, job_id, num)
    answer = kit.wait_finished(job_id, LONG)
    expect(answer.tokens == reference, "the answer is another one")
    kit.wait_empty()


@scenario
def poison(kit: Kit) -> None:
    """A request that ends its workers is ended after three; the innocent beside it are answered."""
    alive = [kit.start(), kit.start()]
    poisonous = kit.submit("poison", 1000)
    innocent = [kit.submit(f"{PROMPT} {number}", LONG) for number in range(4)]
    for _ in range(3):
        kit.until(lambda: kit.state(poisonous) == "running", "the poison to run", 30.0)
        holder = kit.worker_of(poisonous)
        victim = next((worker for worker in alive if worker.id == holder), None)
        expect(victim is not None, f"the poison runs at {holder}, which was not started here")
        assert victim is not None
        # Before its first token: each death is one in a row. A token may have come, then this one does not count.
        victim.kill()
        alive.remove(victim)
        alive.append(kit.start())
        _until_another_has_it(kit, poisonous, holder)
        if kit.state(poisonous) == "done":
            break
    for job_id in innocent:
        kit.wait_finished(job_id, LONG, 60.0)
    kit.cancel(poisonous)
    kit.wait_end(poisonous)
    kit.wait_empty(30.0)


@scenario
def three_deaths(kit: Kit) -> None:
    """The worker that finds a request poisoned adds it to the dead-letter list, and goes on."""
    kit.start()
    job_id = kit.create(PROMPT, LONG)
    attempt = int(kit.redis.hget(job_key(job_id), "attempt")) + 1
    dying = {"state": "running", "worker": "nobody-1", "deaths": 2, "all_deaths": 2, "attempt": attempt}
    kit.redis.hset(job_key(job_id), mapping=dying)
    far = int(time.time() * 1000) + 60_000  # no amnesty: it is dead, and not only forgotten
    kit.redis.hset(CLOCK, mapping={"pulse": far, "amnesty": 0})
    kit.push(job_id)
    end: Any = kit.wait_end(job_id).end
    expect(end.get("code") == "request_poisoned", f"it has ended with {end}")
    kit.until(lambda: kit.redis.llen(DEAD) == 1, "the dead-letter entry")
    entry = json.loads(kit.redis.lindex(DEAD, 0))
    expect((entry["id"], entry["model"], entry["deaths"]) == (job_id, "mock", 3), f"the dead-letter entry is {entry}")
    expect(PROMPT not in str(entry), "the dead-letter entry holds the prompt")
    expect(kit.redis.pttl(DEAD) > 0, "the dead-letter list has no expiry")
    kit.wait_finished(kit.submit(PROMPT, 5), 5)
    kit.wait_empty()


@scenario
def one_suspect_at_a_time(kit: Kit) -> None:
    """Of requests that were each running when a worker died twice, a worker holds one; an innocent one comes later."""
    kit.start()
    suspects = []
    for number in range(3):
        job_id = kit.create(f"{PROMPT} {number}", 300)
        kit.redis.hset(job_key(job_id), mapping={"deaths": 2, "all_deaths": 2})
        suspects.append(job_id)
    # From what is published, in its order: a busy machine may not look at the moment when they are held.
    with kit.listening() as frames:
        for job_id in suspects:
            kit.push(job_id)
        kit.until(lambda: all(kit.answer(job_id).tokens for job_id in suspects), "every suspect to begin", 60.0)
    first = {frame["id"]: frame["attempt"] for frame in map(json.loads, reversed(frames)) if frame["kind"] == "tokens"}
    silent: set[str] = set()
    held_at_once = 0
    for frame in map(json.loads, frames):
        if frame["kind"] == "started" and frame["attempt"] == first[frame["id"]]:  # an earlier one was given back
            silent.add(frame["id"])
        elif frame["kind"] != "started":
            silent.discard(frame["id"])
        held_at_once = max(held_at_once, len(silent))
    # One may just have been claimed and not yet been given back: two for a moment, never three.
    expect(held_at_once <= 2, f"{held_at_once} suspects without a token ran at one worker")
    for job_id in suspects:
        kit.cancel(job_id)
        kit.wait_end(job_id)
    kit.wait_empty()


@scenario
def a_model_that_it_does_not_serve(kit: Kit) -> None:
    """`model_not_found`, at once."""
    kit.start()
    end: Any = kit.wait_end(kit.submit(PROMPT, 5, model="other"), 10.0).end
    expect(end.get("code") == "model_not_found", f"it has ended with {end}")
    kit.wait_empty()


@scenario
def what_it_does_not_accept(kit: Kit) -> None:
    """A field of `sampling` that the worker does not name among what it accepts is refused by name, never ignored."""
    worker = kit.start()
    about = json.loads(kit.redis.hget("{inference:queue}:about", worker.id))
    accepts = about["models"]["mock"].get("accepts", [])
    fields = {"temperature": 0.5, "min_p": 0.1, "logprobs": 2, "reasoning_effort": "low", "seed": 1, "dimensions": 8}
    unknown = [(name, value) for name, value in fields.items() if name not in accepts]
    if not unknown:
        return
    name, value = unknown[0]
    end: Any = kit.wait_end(kit.submit(PROMPT, 5, sampling={name: value}), 10.0).end
    expect((end.get("code"), end.get("param")) == ("unsupported_parameter", name), f"it has ended with {end}")
    end = kit.wait_end(kit.submit(PROMPT, 5, sampling={"extras": {"no_such_extra": 1}}), 10.0).end
    expect(end.get("code") == "unsupported_parameter", f"with an extra it has ended with {end}")


@scenario
def a_task_that_it_does_not_have(kit: Kit) -> None:
    """A `task` that the worker does not name among its tasks is refused, and never answered with words."""
    kit.start()
    end: Any = kit.wait_end(kit.submit(PROMPT, 5, fields={"task": "dream"}), 10.0).end
    expect(end.get("code") == "unsupported_task", f"it has ended with {end}")
    kit.wait_empty()


@scenario
def what_cannot_be_read(kit: Kit) -> None:
    """A job that is not JSON, lacks its model, or names another id, ends at once with an error, and harms no other."""
    kit.start()
    texts = (
        "not JSON",
        "[]",
        '{"v":1}',
        '{"v":1,"job":{"id":"ID"}}',
        '{"v":1,"job":{"id":"x.1","model":"mock","prompt":"x"}}',
    )
    strange = [kit.submit(PROMPT, 5, job=text) for text in texts]
    good = kit.submit(PROMPT, 5)
    for job_id in strange:
        end: Any = kit.wait_end(job_id, 10.0).end
        expect(end.get("code") in ("internal_error", "model_not_found"), f"it has ended with {end}")
    kit.wait_finished(good, 5)
    kit.wait_empty()


@scenario
def a_newer_version(kit: Kit) -> None:
    """A job of a version to come stays in the queue for another worker; later ones are answered meanwhile."""
    kit.start()
    newer = kit.submit(PROMPT, 5, v=2)
    kit.wait_finished(kit.submit(PROMPT, 5), 5)
    kit.wait_finished(kit.submit(PROMPT, 5), 5)
    expect(kit.state(newer) == "queued", f"the newer job is {kit.state(newer)}")
    kit.until(lambda: kit.redis.lrange(Q, 0, -1) == [newer], "the newer job to be in the queue")
    expect(kit.cancel(newer) == "ended", "it can be cancelled")
    kit.wait_empty()


@scenario
def rubbish_on_its_channel(kit: Kit) -> None:
    """Hints that are none, or of other jobs, are ignored."""
    reference, job_id, worker, _ = _running(kit)
    for text in (
        "rubbish",
        "[]",
        "{}",
        '{"id":7}',
        '{"id":"x.1","reason":"client"}',
        '{"reason":"client"}',
        "\x00\xff",
    ):
        kit.redis.publish(f"inference:control:{worker.id}", text)
    answer = kit.wait_finished(job_id, LONG)
    expect(answer.tokens == reference and answer.num_claims == 1, "the running request was disturbed")


@scenario
def its_gateway_stays_away(kit: Kit) -> None:
    """Work of a gateway that does not come back is stopped, but for what is to continue."""
    kit.away_ms = 1000
    kit.start()
    kit.tick("gone", kit.away_ms)
    unwanted = kit.submit(PROMPT, 1000, owner="gone")
    wanted = kit.submit(PROMPT, 300, owner="gone", disconnect="continue")
    end: Any = kit.wait_end(unwanted, 20.0).end
    expect(end.get("finish_reason") == "cancelled", f"it has ended with {end}")
    kit.wait_finished(wanted, 300)


# ── below ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _running(kit: Kit, num_workers: int = 1) -> tuple[list[Any], str, Started, list[Started]]:
    """What the long answer is, and a second request for it that has begun: its id, its worker, the other workers."""
    workers = [kit.start() for _ in range(num_workers)]
    reference = kit.wait_finished(kit.submit(PROMPT, LONG), LONG).tokens
    job_id = kit.submit(PROMPT, LONG)
    kit.wait_tokens(job_id, 10)
    holder = kit.worker_of(job_id)
    (worker,) = (one for one in workers if one.id == holder)
    return reference, job_id, worker, [one for one in workers if one is not worker]


def _goes_on(kit: Kit, job_id: str, reference: list[Any]) -> None:
    answer: Answer = kit.wait_finished(job_id, LONG)
    expect(answer.num_claims >= 2, "it had ended before anything was done to it")
    again = [frame["seq"] for frame in answer.frames if frame["kind"] == "started"][1]
    expect(again >= 10, f"the second worker began at token {again}, not where the log ended")
    expect(answer.tokens == reference, "the answer is another one")
    kit.wait_empty()


def _until_it_goes_on(kit: Kit, job_id: str, num: int) -> None:
    kit.until(lambda: len(kit.answer(job_id).tokens) > num or kit.state(job_id) == "done", f"{job_id} to go on")


def _until_another_has_it(kit: Kit, job_id: str, holder: str | None) -> None:
    kit.until(lambda: kit.worker_of(job_id) != holder or kit.state(job_id) == "done", f"{job_id} to be claimed again")


def _cut(kit: Kit) -> None:
    for kind in ("normal", "pubsub"):
        kit.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
