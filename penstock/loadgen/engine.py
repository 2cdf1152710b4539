"""The load itself: what is asked when, what counts, and when it is over. One event loop, many connections.

Knows nothing of the processes around it.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections import deque
from random import Random
from typing import Any

from penstock.loadgen.line import Line, now_ns, why_not
from penstock.loadgen.plan import Plan, request_bytes, target_of
from penstock.loadgen.tally import Tally

TICK_S = 0.25
CONNECT_TIMEOUT_S = 10.0
PAUSE_S = 0.1  # a connection whose request failed waits this long, so that a refusing server is not hammered
MAX_DIALS = 64  # connections being opened at once; all of them without preconnect
UNREACHABLE_S = 2.0  # no connection could be opened for this long since the start: give up


class Load:
    """The whole of one process' work. Single-threaded, except the clock of the open loop."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.target = target_of(plan.url, plan.api)
        self.requests = [(one, request_bytes(self.target, plan, one.body)) for one in plan.prepared]
        self.num_taken = 0
        self.lines: set[Line] = set()
        self.idle: list[Line] = []
        self.due: deque[int] = deque()  # open loop: instants that no connection was free for
        self.has_connected = False
        self.is_stopping = False
        self.over = asyncio.Event()
        self.dials = asyncio.Semaphore(MAX_DIALS if plan.preconnect else plan.concurrency)
        self.tasks: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()
        self.slo_ns = {name: round(value * 1e9) for name, value in plan.slo.items()}
        self.tls = ssl.create_default_context() if self.target.is_tls else None

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def connect(self) -> None:
        """Open connections before any load. A busy server may take new ones slowly (with uvloop, one for each turn of
        its loop), and that is not what is to be measured: those not yet taken would wait, and the others not notice.
        """
        plan = self.plan
        wanted = min(plan.concurrency, round(plan.rate) + MAX_DIALS) if plan.rate else plan.concurrency
        wanted = wanted if plan.preconnect else 0
        await asyncio.gather(*(self._open_line() for _ in range(wanted)))

    async def run(self, start_at: float, progress: Any) -> None:
        """Until everything asked has ended. `start_at` is monotonic seconds; `progress` is called each tick."""
        plan = self.plan
        await asyncio.sleep(max(0.0, start_at - time.monotonic()))
        begun_at = time.monotonic()
        if plan.warmup_s:
            self.loop.call_later(plan.warmup_s, self._open)
        else:
            self._open()
        if not plan.requests:
            self.loop.call_later(plan.warmup_s + plan.duration_s, self.stop)
        if plan.rate:
            threading.Thread(target=self._clock, args=(begun_at,), daemon=True).start()
        else:
            self.idle, standing = [], self.idle
            # Not all at once: with answers of one length they would stay in step, a crowd at every end.
            for number, line in enumerate(standing):
                self.loop.call_later(plan.ramp_s * number / len(standing), self._again, line)
            for _ in range(plan.concurrency - len(standing)):
                self._spawn(self._dial(None))
        while not self.over.is_set():
            try:
                await asyncio.wait_for(self.over.wait(), TICK_S)
            except TimeoutError:
                self._tick(begun_at, progress)
        self._shut()
        for task in self.tasks:
            task.cancel()
        for line in list(self.lines):
            if line.is_busy and line.is_measured:
                self.tally.error("unfinished")
            line.is_busy = False
            line.close()

    def stop(self) -> None:
        """No more requests; what is open may end."""
        if not self.is_stopping:
            self.is_stopping = True
            self._shut()
            while self.due:
                self._count_failure(self.due.popleft(), "no free connection")
            self._end_if_done()

    def abort(self) -> None:
        """Now, whatever is open."""
        self.stop()
        self.over.set()

    def _open(self) -> None:
        if not self.is_stopping:
            self.tally.is_open = True
            self.tally.opened_at = now_ns()

    def _shut(self) -> None:
        """The measured window ends."""
        if self.tally.is_open:
            self.tally.is_open = False
            self.tally.ended_at = now_ns()

    def _tick(self, begun_at: float, progress: Any) -> None:
        now, tally, limit = now_ns(), self.tally, round(self.plan.timeout_s * 1e9)
        for line in list(self.lines):
            if line.is_busy and now - line.at > limit:
                line.fail("timeout")
        while self.due and now - self.due[0] > limit:
            self._count_failure(self.due.popleft(), "timeout")
        if tally.is_open:
            tally.timeline.append(((now - tally.opened_at) / 1e9, tally.num_tokens, tally.num_ended))
        if not self.has_connected and time.monotonic() - begun_at > UNREACHABLE_S:
            self.abort()
        progress(tally)

    def _end_if_done(self) -> None:
        if self.is_stopping and not any(line.is_busy for line in self.lines):
            self.over.set()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, line: Line, at: int) -> None:
        tally = self.tally
        prepared, request = self.requests[self.num_taken % len(self.requests)]
        self.num_taken += 1
        is_measured = tally.is_open
        if is_measured:
            tally.num_begun += 1
            if self.plan.rate:
                tally.lag.add(now_ns() - at)
        line.ask(prepared, request, at, is_measured=is_measured)

    def _has_more(self) -> bool:
        """Whether another request may begin. With a number of requests, those of the warm-up are not among it."""
        return not self.is_stopping and not (0 < self.plan.requests <= self.tally.num_begun)

    def on_end(self, line: Line, now: int) -> None:
        """The request on `line` has ended, well or not."""
        self._judge(line, now)
        is_ok = not (line.scanner.error or line.scanner.wrong)
        if self.due and self._has_more() and line.transport is not None:
            self._begin(line, self.due.popleft())
        elif self._has_more() and not self.plan.rate:
            if is_ok and line.transport is not None:
                self._begin(line, now)
            elif is_ok:
                self._again(line)
            else:
                self.loop.call_later(PAUSE_S, self._again, line)
        else:
            self._rest(line)

    def _again(self, line: Line) -> None:
        if not self._has_more():
            self._rest(line)
        elif line.transport is not None:
            self._begin(line, now_ns())
        else:
            self.lines.discard(line)
            self.tally.num_reconnects += 1
            self._spawn(self._dial(None))

    def _rest(self, line: Line) -> None:
        """Nothing to do for this connection now."""
        if line.transport is None:
            self.lines.discard(line)
        else:
            self.idle.append(line)
        if not self._has_more():
            self.is_stopping = True
            if not any(one.is_busy for one in self.lines):
                self.over.set()
        elif self.due and line.transport is None:
            self._spawn(self._dial(self.due.popleft()))

    def on_idle_lost(self, line: Line) -> None:
        """The server closed a connection that nothing was on."""
        self.lines.discard(line)
        if line in self.idle:
            self.idle.remove(line)

    def _judge(self, line: Line, now: int) -> None:
        tally, scanner = self.tally, line.scanner
        tally.total_ended += 1
        is_bad = bool(scanner.error or scanner.wrong)
        tally.total_failed += is_bad
        if tally.is_open and not is_bad:
            tally.num_ended += 1
        if not line.is_measured:
            # Wrong answers are counted whenever they come; refusals of a warm-up are not.
            if scanner.wrong:
                tally.num_wrong += 1
                tally.error(f"wrong: {scanner.wrong}")
            return
        if is_bad:
            tally.num_wrong += bool(scanner.wrong)
            tally.error(f"wrong: {scanner.wrong}" if scanner.wrong else scanner.error)
            return
        tally.num_ok += 1
        e2e = now - line.at
        tally.e2e.add(e2e)
        spread = ttft = 0
        if line.num:
            ttft = line.first_at - line.at
            tally.ttft.add(ttft)
            if line.num > 1:
                spread = (line.last_at - line.first_at) // (line.num - 1)
                tally.tpot.add(spread)
        seen = {"ttft": ttft, "itl": spread, "gap": line.max_gap, "e2e": e2e} if self.slo_ns else {}
        tally.num_good += all(seen[name] <= limit for name, limit in self.slo_ns.items())

    def _count_failure(self, at: int, kind: str) -> None:
        """A request that never got as far as a connection."""
        tally = self.tally
        tally.total_ended += 1
        tally.total_failed += 1
        if not self.has_connected or (tally.opened_at and at >= tally.opened_at):
            tally.num_begun += 1
            tally.error(kind)

    # ── connections ──────────────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _open_line(self) -> Line | OSError:
        """A new connection, idle; or why there is none."""
        line = Line(self)
        target = self.target
        try:
            async with self.dials, asyncio.timeout(CONNECT_TIMEOUT_S):
                await self.loop.create_connection(lambda: line, target.host, target.port, ssl=self.tls)
        except OSError as error:  # a TimeoutError is one
            return error
        self.has_connected = True
        self.lines.add(line)
        self.idle.append(line)
        return line

    async def _dial(self, at: int | None) -> None:
        """Open a connection and ask on it: for the arrival `at`, or (None) as soon as it is open."""
        line = await self._open_line()
        if isinstance(line, Line):
            self.idle.remove(line)
            if self._has_more() and line.transport is not None:
                self._begin(line, now_ns() if at is None else at)
            else:
                self._rest(line)
            return
        self._count_failure(now_ns() if at is None else at, why_not(line))
        if at is None and not self.is_stopping:
            await asyncio.sleep(PAUSE_S)
            if self._has_more():
                self._spawn(self._dial(None))
        self._end_if_done()

    # ── the open loop ────────────────────────────────────────────────────────────────────────────────────────────

    def _clock(self, begun_at: float) -> None:
        """A thread: Poisson arrivals. The loop's own timers are whole milliseconds; sleeping here is finer."""
        chance, rate = Random(self.plan.seed), self.plan.rate
        at = begun_at
        while not self.is_stopping:
            at += chance.expovariate(rate)
            wait_s = at - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, 1.0))
                while not self.is_stopping and (left_s := at - time.monotonic()) > 0:
                    time.sleep(min(left_s, 1.0))
            try:
                self.loop.call_soon_threadsafe(self._arrive, round(at * 1e9))
            except RuntimeError:  # the loop has ended between the check and the call
                return

    def _arrive(self, at: int) -> None:
        if not self._has_more():
            return
        if self.idle:
            self._begin(self.idle.pop(), at)
        elif len(self.lines) < self.plan.concurrency:
            self._spawn(self._dial(at))
        else:
            self.due.append(at)
