"""A producer that checks everything: it submits, watches logs and channels, and kills, freezes and cuts off workers."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from itertools import count
from typing import Any

import redis

from tests.support.servers import redis_client

Q = "inference:queue"
WORKERS, ABOUT, CLOCK, GATEWAYS, DEAD = (
    f"{{{Q}}}:{name}" for name in ("workers", "about", "clock", "gateways", "dead")
)
END = 18446744073709551615
MODEL = "mock"
START_S = 30.0
_LUA = resources.files("penstock.transports.redis").joinpath("lua")


class Broken(AssertionError):
    """A rule that the worker does not keep."""


@dataclass
class Started:
    """One process of the worker under test, and the id that it enlisted under at first."""

    process: subprocess.Popen[bytes]
    id: str

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Answer:
    """What a log says, folded."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[Any] = field(default_factory=list)
    end: dict[str, Any] | None = None

    @property
    def num_claims(self) -> int:
        return sum(frame["kind"] == "started" for frame in self.frames)


class Kit:
    """One Redis, one gateway that ticks, and the workers that a scenario starts. `close` ends them all."""

    def __init__(self, url: str, command: str) -> None:
        self.url = url
        self.command = command
        self.redis: Any = redis_client(url, decode_responses=True)
        self.gateway = f"kit{os.getpid()}x{time.monotonic_ns()}"
        self.workers: list[Started] = []
        self._logs: list[Any] = []
        self._numbers = count(1)
        self._sources: dict[str, str] = {}
        self._is_over = threading.Event()
        self._ticker = threading.Thread(target=self._keep_ticking, name="kit-ticks", daemon=True)
        self.away_ms = 30_000
        self.redis.flushall()
        self._ticker.start()

    def close(self) -> None:
        self._is_over.set()
        self._ticker.join(10)
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.kill()
        for log in self._logs:
            log.close()
        self.redis.close()

    # ── the worker under test ────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> Started:
        """Start one more worker, and wait for its lease."""
        before = set(self.redis.zrange(WORKERS, 0, -1))
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the kit
        self._logs.append(log)
        process = subprocess.Popen(
            shlex.split(self.command.replace("{redis}", self.url)),
            env={**os.environ, "PENSTOCK_REDIS_URL": self.url},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        new: set[str] = set()

        def has_enlisted() -> bool:
            if process.poll() is not None:
                raise Broken(f"the worker has ended with status {process.returncode} before it enlisted")
            new.update(set(self.redis.zrange(WORKERS, 0, -1)) - before)
            return bool(new)

        try:
            self.until(has_enlisted, "the worker to enlist", START_S)
        except BaseException:
            process.kill()
            raise
        worker = Started(process, new.pop())
        self.workers.append(worker)
        return worker

    def output(self) -> str:
        """What the workers have printed."""
        said = []
        for log in self._logs:
            fd = log.fileno()  # its position is the worker's, too: reading must not move it
            said.append(os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")[-3000:])
        return "\n──\n".join(said)

    # ── a producer ───────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, script: str, keys: list[str], *args: Any) -> Any:
        source = self._sources.get(script)
        if source is None:
            source = self._sources[script] = _LUA.joinpath(f"{script}.lua").read_text()
        return self.redis.eval(source, len(keys), *keys, *args)

    def create(self, prompt: str = "Say.", max_tokens: int = 20, timeout_s: float = 60.0, **more: Any) -> str:
        """A job that is not in the queue yet. `job`: other JSON in its place; `model`, `disconnect`, `owner`, …"""
        job_id = f"{self.gateway}.{next(self._numbers)}"
        job = {"id": job_id, "model": more.get("model", MODEL), "prompt": prompt, "timeout_s": timeout_s}
        job["sampling"] = {"max_tokens": max_tokens, **more.get("sampling", {})}
        text: str = more.get("job", json.dumps({"v": more.get("v", 1), "job": {**job, **more.get("fields", {})}}))
        owner, disconnect = more.get("owner", self.gateway), more.get("disconnect", "cancel")
        args = (text.replace("ID", job_id), job["model"], disconnect, owner, round(timeout_s * 1000), 60_000, 0)
        self.run("create", [job_key(job_id), log_key(job_id)], *args)
        return job_id

    def push(self, job_id: str, where: str = "tail") -> None:
        self.run("enqueue", [Q, CLOCK], job_id, 0, where, "")

    def submit(self, prompt: str = "Say.", max_tokens: int = 20, timeout_s: float = 60.0, **more: Any) -> str:
        job_id = self.create(prompt, max_tokens, timeout_s, **more)
        self.push(job_id)
        return job_id

    def cancel(self, job_id: str, reason: str = "client") -> str:
        outcome: str = self.run("cancel", [job_key(job_id), log_key(job_id)], job_id, reason, "")
        return outcome

    def restore(self, job_id: str, prompt: str, max_tokens: int, answer: Answer) -> None:
        """Give a job back to a Redis that has forgotten it, with what its client has."""
        job = {"id": job_id, "model": MODEL, "prompt": prompt, "sampling": {"max_tokens": max_tokens}}
        head = (json.dumps({"v": 1, "job": job}), MODEL, "cancel", self.gateway, 60_000, 60_000)
        attempt = max((frame["attempt"] for frame in answer.frames), default=0)
        tokens = [json.dumps(token) for token in answer.tokens]
        self.run("restore", [job_key(job_id), log_key(job_id)], *head, attempt, job_id, "{}", *tokens)
        self.push(job_id, "head")

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────────────

    def state(self, job_id: str) -> str | None:
        found: str | None = self.redis.hget(job_key(job_id), "state")
        return found

    def worker_of(self, job_id: str) -> str | None:
        found: str | None = self.redis.hget(job_key(job_id), "worker")
        return found

    def answer(self, job_id: str) -> Answer:
        """The log, checked frame by frame and folded."""
        answer = Answer()
        attempt = 0
        for entry, fields in self.redis.xrange(log_key(job_id)):
            expect(answer.end is None, f"{job_id}: there is an entry {entry} behind the end")
            expect(list(fields) == ["f"], f"{job_id}: entry {entry} has the fields {list(fields)} and not f")
            frame = json.loads(fields["f"])
            kind, seq, tokens = frame["kind"], frame["seq"], frame.get("tokens", [])
            expect(frame["id"] == job_id, f"{job_id}: a frame of {frame['id']}")
            expect(type(frame["attempt"]) is int and frame["attempt"] >= attempt, f"{job_id}: attempt at {entry}")
            num = len(answer.tokens)
            expect(0 <= seq <= num, f"{job_id}: tokens {num} to {seq} are missing at {entry}")
            is_new = frame["attempt"] > attempt
            expect(is_new or seq == num, f"{job_id}: tokens from {seq} on are there twice at {entry}")
            place = END if kind in ("done", "failed") else seq + len(tokens)
            expect(entry == f"{frame['attempt']}-{place}", f"{job_id}: entry {entry} for {frame['attempt']}-{place}")
            for token in tokens:
                expect(isinstance(token, str | dict), f"{job_id}: a token that is {type(token).__name__}")
                json.dumps(token, ensure_ascii=False).encode()  # half a surrogate is not text
            attempt = frame["attempt"]
            answer.tokens[seq:] = tokens
            answer.frames.append(frame)
            if kind in ("done", "failed"):
                _check_end(job_id, frame)
                answer.end = frame
        return answer

    def wait_tokens(self, job_id: str, num: int, timeout_s: float = 20.0) -> Answer:
        """Until the log has so many tokens; fails if the job ends before that."""

        def has_tokens() -> bool:
            answer = self.answer(job_id)
            expect(answer.end is None, f"{job_id} has ended with {answer.end} before it had {num} tokens")
            return len(answer.tokens) >= num

        self.until(has_tokens, f"{num} tokens of {job_id}", timeout_s)
        return self.answer(job_id)

    def wait_end(self, job_id: str, timeout_s: float = 30.0) -> Answer:
        """Until the log has an end and the hash says `done`."""
        self.until(lambda: self.state(job_id) in ("done", None), f"{job_id} to end", timeout_s)
        expect(self.state(job_id) == "done", f"{job_id} is forgotten")
        answer = self.answer(job_id)
        expect(answer.end is not None, f"{job_id} is done and its log has no end")
        return answer

    def wait_finished(self, job_id: str, max_tokens: int, timeout_s: float = 30.0) -> Answer:
        """Until it has ended with all of its tokens."""
        answer = self.wait_end(job_id, timeout_s)
        end: Any = answer.end
        expect(end["kind"] == "done" and end["finish_reason"] in ("length", "stop"), f"{job_id} has ended with {end}")
        expect(len(answer.tokens) == max_tokens, f"{job_id} has {len(answer.tokens)} tokens and not {max_tokens}")
        told = end.get("usage", {}).get("completion_tokens", max_tokens)
        expect(told == max_tokens, f"{job_id}: usage says {told} tokens, over all attempts there are {max_tokens}")
        return answer

    def wait_empty(self, timeout_s: float = 15.0) -> None:
        """Until no queue and no worker's list holds an id."""

        def held() -> list[str]:
            return [*self.redis.scan_iter(f"{{{Q}}}:worker:*"), *([Q] if self.redis.llen(Q) else [])]

        self.until(lambda: not held(), "the queue and the workers' lists to be empty", timeout_s)

    def until(self, is_true: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            if time.monotonic() > deadline:
                raise Broken(f"waited {timeout_s:g} s for {what}")
            time.sleep(0.01)  # polling another process, with a deadline

    def live(self) -> set[str]:
        """The ids of the workers whose lease holds."""
        seconds, micros = self.redis.time()
        return set(self.redis.zrangebyscore(WORKERS, seconds * 1000 + micros // 1000, "+inf"))

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[str]]:
        """What is published for this gateway's jobs."""
        pubsub = self.redis.pubsub(ignore_subscribe_messages=True)
        pubsub.psubscribe(f"inference:response:{self.gateway}.*")
        heard: list[str] = []
        while pubsub.get_message(timeout=0.2):  # the confirmation
            pass
        try:
            yield heard
            while (message := pubsub.get_message(timeout=0.2)) is not None:
                heard.append(message["data"])
        finally:
            pubsub.close()

    # ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, gateway: str, away_ms: int = 30_000) -> None:
        _, _, _, dead, *_ = self.run("tick", [GATEWAYS, WORKERS, ABOUT, CLOCK, Q], gateway, away_ms)
        for wid in dead:
            self.run("reap", [Q, f"{{{Q}}}:worker:{wid}", WORKERS, ABOUT, CLOCK], wid, "reap")

    def _keep_ticking(self) -> None:
        while not self._is_over.wait(0.5):
            with contextlib.suppress(redis.ConnectionError):  # cut by a scenario
                self.tick(self.gateway, self.away_ms)


def _check_end(job_id: str, frame: dict[str, Any]) -> None:
    if frame["kind"] == "done":
        known = ("stop", "length", "tool_calls", "content_filter", "cancelled")
        expect(frame.get("finish_reason") in known, f"{job_id}: finish_reason {frame.get('finish_reason')!r}")
    else:
        is_said = isinstance(frame.get("code"), str) and isinstance(frame.get("message"), str)
        expect(is_said, f"{job_id}: failed without code or message: {frame}")


def expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Broken(otherwise)


def job_key(job_id: str) -> str:
    return f"{{inference:response:{job_id}}}:job"


def log_key(job_id: str) -> str:
    return f"{{inference:response:{job_id}}}:log"
