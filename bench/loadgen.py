"""Another load generator in place of `penstock bench`: one in C, which takes a third of its CPU for the same load.

It is not part of this repository; these are the flags that it must know. It checks answers too: the status, the number
and the order of tokens, the end.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

MAX_OPEN = 1000  # connections of an open loop: it opens all of them before it begins
_STREAM = ["--sse", "--token", '"index"', "--seq", '"index":', "--done", "event: done", "--expect"]


def run(
    path: str,
    url: str,
    *,
    concurrency: int,
    tokens: int,
    is_stream: bool,
    measure_s: float,
    warmup_s: float,
    rate: float = 0.0,
) -> dict[str, Any]:
    """Drive `POST /v1/generate` at `url`; what was found, in the words of `penstock bench --json`."""
    body = json.dumps({"prompt": "the " * 32, "max_tokens": tokens, "stream": is_stream})
    command = [path, "-d", str(measure_s), "-w", str(warmup_s), "-B", body]
    command += [*_STREAM, str(tokens)] if is_stream else ["--must", "usage"]
    if rate:
        command += ["-c", str(min(concurrency, MAX_OPEN)), "--rate", str(rate), "--poisson"]
    else:
        command += ["-c", str(concurrency), "--ramp", str(warmup_s)]
    done = subprocess.run([*command, f"{url}/v1/generate"], capture_output=True, text=True, timeout=measure_s + 120)
    if not done.stdout:
        raise RuntimeError(f"{path}: {done.stderr}")
    found = json.loads(done.stdout)
    return {
        "tokens_per_s": found["tok_s"] if is_stream else found["req_s"] * tokens,
        "requests_per_s": found["req_s"],
        "tokens_with_warmup": found["tok_all"] if is_stream else found["req_all"] * tokens,
        "ttft_ms": found["ttft_ms"] if is_stream else {},
        "failed": found["bad"] + found["conn_err"] + found["timeouts"],
        "errors": {found["why"]: found["bad"]} if found["bad"] else {},
        "generator_cpu": [found["lg_cpu_frac"]],
        "plan": {"stream": is_stream},
    }
