"""`python -m bench.readme`: writes the measured figures of README.md, from the newest `make bench` and `make chaos`.

`make bench` and `make chaos-docs` run it. A test compares README.md with these results.
"""

from __future__ import annotations

import json
import re
from typing import Any

from bench.report import RESULTS, ROOT, newest

README = ROOT / "README.md"
FIRST_TOKEN = "first token over bare, c=1, p50"
SLOT_IS_FREE = "slots free, in the middle"


def phrases(bench: dict[str, Any], chaos: dict[str, Any]) -> list[str]:
    """The phrases of README.md that contain figures; each figure is between `<` and `>`.

    Raises `ValueError` if tokens were lost or repeated: README.md promises that none is.
    """
    scenarios = {scenario["name"]: scenario for scenario in chaos["scenarios"]}
    killed = [scenarios[name] for name in ("kill_workers", "kill_gateways")]
    if any(seen["lost"] or seen["repeated"] for seen in killed):
        raise ValueError("`make chaos` lost or repeated tokens: README.md must not promise otherwise")
    worker_s, gateway_s = (seen["pause_ms"]["p50"] / 1000 for seen in killed)
    left_ms = scenarios["leaving_clients"]["notes"][SLOT_IS_FREE].partition(" ms")[0]
    first_ms = next(goal["median"] for goal in bench["goals"] if goal["says"] == FIRST_TOKEN)
    return [
        f"In its run of <{chaos['at'][:10]}>, clients",
        f"a pause of <{worker_s:.1f}> s (median; a gateway: <{gateway_s:.2f}> s)",
        f"frees its slot (in <{left_ms}> ms in that run)",
        f"came <{first_ms:.1f}> ms later than from a bare web server (<{bench['about']['date']}>)",
    ]


def fill(page: str, wanted: list[str]) -> str:
    """The page with each phrase's figures in place. Raises `ValueError` if it does not have each phrase once."""
    for phrase in wanted:
        words, figures = re.split(r"<[^>]*>", phrase), re.findall(r"<([^>]*)>", phrase)
        pattern = r"[\d.-]+".join("(" + re.escape(text).replace(r"\ ", r"\s+") + ")" for text in words)

        def filled(match: re.Match[str], figures: list[str] = figures) -> str:
            return "".join(text + figure for text, figure in zip(match.groups(), [*figures, ""], strict=True))

        page, times = re.subn(pattern, filled, page)
        if times != 1:
            raise ValueError(f"README.md has this phrase {times} times instead of once: {phrase}")
    return page


def render() -> str:
    """README.md as it has to be after the newest results."""
    bench = json.loads(newest().read_text(encoding="utf-8"))
    chaos = json.loads((RESULTS / "chaos.json").read_text(encoding="utf-8"))
    return fill(README.read_text(encoding="utf-8"), phrases(bench, chaos))


if __name__ == "__main__":
    README.write_text(render(), encoding="utf-8")
