"""Records what a client sees when the worker of its answer is killed: `make cast` writes docs/img/kill.svg.

A real Redis, a gateway and two workers. Every token is shown when it arrived, and the picture is written only when all
of them came, in order. The second worker starts after the first token, so that the answer surely begins at the first
one. The command lines are a short form of what runs; the words are the mock engine's and mean nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tests.support.servers import free_port, start_server

PICTURE = Path(__file__).resolve().parent / "img" / "kill.svg"
NUM_TOKENS = 96
KILL_AFTER = 30
STEP_MS = 60
READY_S = 20.0
COLUMNS, CHAR, LINE = 82, 8.4, 19  # characters, and what each takes, in pixels


@dataclass(frozen=True)
class Said:
    """A piece of text on the screen. `at_s`: when it appears."""

    at_s: float
    text: str
    kind: str  # shell, token, again (a token after the kill), kill or end


def main() -> int:
    server = start_server()
    store = ["--redis-url", server.url]
    started: list[subprocess.Popen[bytes]] = []

    with tempfile.TemporaryFile() as log:

        def start(kind: str, *args: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "penstock", kind, *store, *args]
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            return started[-1]

        try:
            return record(start)
        finally:
            for process in started:
                process.kill()
                process.wait()
            server.stop()


def record(start: Callable[..., subprocess.Popen[bytes]]) -> int:
    url, second = f"http://127.0.0.1:{free_port()}", free_port()
    model = ["--no-supervised", "--model", f"mock=mock:step_ms={STEP_MS}"]
    first = start("worker", *model, "--metrics-port", "0")
    start("gateway", "--port", url.rpartition(":")[2])
    wait_ready(url)
    begun_at = time.monotonic()
    screen = [
        Said(
            0.0, f"$ penstock gateway & penstock worker & penstock worker &   # pid of the first: {first.pid}", "shell"
        ),
        Said(0.6, f'$ penstock ask "Tell me a story." --max-tokens {NUM_TOKENS}', "shell"),
    ]
    shown_s = 1.2  # when the first token is shown
    body = {"prompt": "Tell me a story.", "max_tokens": NUM_TOKENS, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/generate", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    num, killed_at, last_at, pause_s, is_second_up = 0, 0.0, 0.0, 0.0, False
    usage: dict[str, int] = {}
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            now = time.monotonic()
            if "index" in event:
                if event["index"] != num:
                    raise RuntimeError(f"token {num} was expected, and {event['index']} came")
                if num == 0:
                    begun_at = now - shown_s
                    start("worker", *model, "--metrics-port", str(second))
                num += 1
                pause_s = max(pause_s, now - last_at) if last_at else 0.0
                last_at = now
                screen.append(Said(now - begun_at, event["text"], "again" if killed_at else "token"))
                is_second_up = is_second_up or (num % 5 == 0 and answers(f"http://127.0.0.1:{second}/readyz"))
                if not killed_at and num >= KILL_AFTER and is_second_up:
                    first.kill()
                    killed_at = time.monotonic()
                    screen.append(Said(killed_at - begun_at, f"   <- kill -9 {first.pid}", "kill"))
            elif "usage" in event:
                usage = event["usage"]
    if num != NUM_TOKENS or usage.get("completion_tokens") != NUM_TOKENS or not killed_at:
        raise RuntimeError(f"{num} tokens came, {usage}; the worker was {'' if killed_at else 'not '}killed")
    says = f"{num} of {NUM_TOKENS} tokens, each once and in order. The longest pause was {pause_s:.1f} s."
    screen.append(Said(last_at - begun_at + 0.3, says, "end"))
    PICTURE.write_text(render(screen), encoding="utf-8")
    print(f"wrote {PICTURE.name}: {says}")
    return 0


def wait_ready(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while not answers(f"{url}/readyz"):
        if time.monotonic() > deadline:
            raise RuntimeError("the gateway is not ready")
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


COLOURS = {"shell": "#d0d7de", "token": "#ffffff", "again": "#7ee787", "kill": "#ff7b72", "end": "#79c0ff"}


def render(screen: list[Said]) -> str:
    """An SVG in which each piece appears at its time; all at once where the reader prefers reduced motion."""
    row, column, pieces = 0, 0, []
    before = ""
    for said in screen:
        flows = said.kind in ("token", "again")
        text = said.text if flows else said.text.rstrip()
        if before and (not flows or before not in ("token", "again")) and said.kind != "kill":
            row, column = row + 1, 0
        if flows and column + len(text) > COLUMNS:
            row, column, text = row + 1, 0, text.lstrip()
        if shown := text.strip():
            x, y = 16 + (column + text.index(shown)) * CHAR, 34 + row * LINE
            pieces.append(
                f'<text class="{said.kind}" x="{x:.1f}" y="{y}" textLength="{len(shown) * CHAR:.1f}" '
                f'style="animation-delay:{said.at_s:.2f}s">{escape(shown)}</text>'
            )
        column += len(text)
        before = "token" if said.kind == "kill" else said.kind
        if said.kind == "kill":
            row, column = row + 1, 0
    width, height = 32 + int(COLUMNS * CHAR), 34 + (row + 1) * LINE
    colours = "".join(f".{kind}{{fill:{colour}}}" for kind, colour in COLOURS.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="A worker is killed in the middle of an answer; another one goes on, and no token is missing">\n'
        "<style>text{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre;opacity:0;"
        f"animation:show .01s forwards}}{colours}@keyframes show{{to{{opacity:1}}}}"
        "@media (prefers-reduced-motion:reduce){text{animation:none;opacity:1}}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>\n' + "\n".join(pieces) + "\n</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
