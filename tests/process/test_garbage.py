"""A finished request leaves nothing behind that only Python's cycle collector could free: to look for it stops every
stream for tens of milliseconds."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.servers import free_port

NUM = 50
# In its own process: the collector is the interpreter's. `DEBUG_SAVEALL` keeps what only the collector could free.
PROGRAM = """
import gc, json, os, sys, threading, time, urllib.request
from penstock.cli import main

port, num = sys.argv[1:]

def ask(is_stream):
    body = json.dumps({"prompt": "x", "max_tokens": 4, "stream": is_stream}).encode()
    url, headers = f"http://127.0.0.1:{port}/v1/generate", {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        return answer.read()

def is_up():
    try:
        return bool(ask(False))
    except OSError:
        return False

def look():
    while not is_up():
        time.sleep(0.05)
    for is_stream in [True, False] * 10:
        ask(is_stream)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    for is_stream in [True, False] * int(num):
        ask(is_stream)
    gc.collect()
    names = [type(one).__qualname__ for one in gc.garbage]
    print("GARBAGE", json.dumps({name: names.count(name) for name in names}), flush=True)
    os._exit(0)

threading.Thread(target=look, daemon=True).start()
sys.argv = ["penstock", "serve", "--port", port]
main()
"""


def test_a_request_leaves_no_garbage() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(free_port()), str(NUM)], capture_output=True, text=True, timeout=60
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("GARBAGE ")]
    assert found, done.stderr[-2000:]
    # Whatever is left of each request is there a hundred times; a timer of the process itself may add a few.
    often = {name: num for name, num in json.loads(found[0].removeprefix("GARBAGE ")).items() if num >= NUM / 2}
    assert often == {}
