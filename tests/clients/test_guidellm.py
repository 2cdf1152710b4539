"""guidellm measures Penstock as it measures any server with OpenAI's API."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.clients.program import Program, run

PROGRAM = Program("guidellm", python=("guidellm",))
GUIDELLM = Path(sys.executable).with_name("guidellm")


def test_a_benchmark(url: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"hello {number}"}) + "\n" for number in range(20)))
    run(
        GUIDELLM, "benchmark", "run", "--target", url, "--profile", "synchronous", "--max-requests", "6",
        "--data", str(prompts), "--output-path", str(tmp_path / "out.json"), "--disable-console",
    )  # fmt: skip
    made = json.loads((tmp_path / "out.json").read_text())
    totals = made["benchmarks"][0]["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (6, 0)
