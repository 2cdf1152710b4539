"""Commands on a terminal, in front of a server whose every text is made of commands to terminals."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.process.test_examples import on_a_terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)

BAD = "\x1b]52;c;cm0=\x07\x9b2J\x1b[2J\r\u202eevil"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OWN = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r(?=\n)")  # styles; and a terminal's own carriage returns


class Hostile(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        leased = {"id": BAD, "lease_s": 1.0, "held": 1, "free": 1, "slots": 1, "host": BAD, "pid": 1, "models": [BAD]}
        held = {
            "id": BAD,
            "model": BAD,
            "caller": BAD,
            "state": "running",
            "worker": BAD,
            "attempts": 1,
            "tokens": 1,
            "age_s": 1.0,
        }
        counts = {"queue_depth": 1, "drain_rate_per_s": 1.0, "num_taken": 1, "num_dead": 1, "num_held": 1}
        site = {"oldest_waiting_s": None, "gateways": [leased], "workers": [leased], "running": [held], **counts}
        finding = {"level": "warning", "name": BAD, "value": BAD, "advice": BAD}
        dead = {"id": BAD, "model": BAD, "deaths": 1, "error": BAD, "reason": BAD}
        answers = {
            "overview": site,
            "doctor": {"level": "ok", "findings": [finding]},
            "dead": {"data": [dead]},
            "x": dead,
        }
        self._answer(200, answers[self.path.rpartition("/")[2]])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        if self.path.endswith("redrive"):
            self._answer(200, {"request_id": BAD})
        else:
            self._answer(400, {"error": {"code": "invalid_request", "message": BAD, "type": "x", "param": None}})

    def do_DELETE(self) -> None:
        self._answer(200, {"outcome": BAD})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "command",
    ["ask x", "ps --once", "ps --json", "doctor", "dead list", "dead show x", "dead redrive x", "cancel x"],
)
async def test_no_text_of_a_server_reaches_the_terminal_as_a_command(url: str, command: str) -> None:
    process, master = on_a_terminal(*command.split(), "--url", url)
    said = bytearray()

    def has_ended() -> bool:
        try:
            said.extend(os.read(master, 65536))
        except OSError:  # nothing at present; or the terminal has closed
            return process.poll() is not None
        return False

    await wait_until(has_ended, "it ends")
    os.close(master)
    text = said.decode()
    assert "\\u001b]5" in text, "it was shown"
    assert UNSAFE.findall(OWN.sub("", text)) == [], text
