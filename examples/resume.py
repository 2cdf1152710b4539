"""A stream that outlives its gateway. `python examples/resume.py --redis-url redis://127.0.0.1:6379`

Starts two gateways and a worker on that Redis, follows an answer, and kills the gateway that serves it in the middle.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from penstock import Client

PENSTOCK = (sys.executable, "-P", "-m", "penstock")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*PENSTOCK, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def main(redis_url: str) -> None:
    if subprocess.run([*PENSTOCK, "doctor", "--redis-url", redis_url], stdout=subprocess.DEVNULL).returncode != 0:
        sys.exit(f"No usable Redis at {redis_url}: start one with redis-server, or name another with --redis-url.")
    ports = [str(free_port()), str(free_port())]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    store = ("--redis-url", redis_url)
    with (
        running("worker", *store, "--model", "mock=mock:step_ms=20", "--metrics-port", "0"),
        running("gateway", *store, "--port", ports[0]) as first,
        running("gateway", *store, "--port", ports[1]),
        Client(*urls, max_retries=30) as client,
    ):
        with Client(urls[0], max_retries=30, reach_s=60) as waiting:
            waiting.models()  # until the first one is up: a client begins with the first of its gateways that answers
        with client.stream("Tell me a long story.", max_tokens=100) as stream:
            for number, token in enumerate(stream, 1):
                print(token, end="", flush=True)
                if number == 30:
                    print("\n── the gateway is killed ──", flush=True)
                    first.send_signal(signal.SIGKILL)
        num = stream.answer.usage.completion_tokens if stream.answer else 0
        print(f"\n── {num} tokens; the stream was taken up {stream.num_resumed} times ──")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis-url", default="redis://127.0.0.1:6379")
    main(parser.parse_args().redis_url)
