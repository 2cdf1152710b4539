"""The result of a run: the tallies of all processes as one, and the figures that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.loadgen.histogram import Histogram
from penstock.loadgen.plan import Plan
from penstock.loadgen.tally import COUNTS, LATENCIES
from penstock.version import __version__

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
BUSY = 0.85  # share of a core above which the generator may be what was measured


@dataclass(kw_only=True)
class Result:
    """One run. Counts as in `Tally`; `window_s` is the measured time, `cpu` each process' share of a core."""

    plan: Plan
    window_s: float
    latencies: dict[str, Histogram]
    counts: dict[str, int]
    errors: dict[str, int]
    cpu: list[float]
    timeline: list[tuple[float, float, float]] = field(default_factory=list)  # seconds, tokens/s, answers/s

    @property
    def num_failed(self) -> int:
        return sum(self.errors.values())

    @property
    def is_failure(self) -> bool:
        """Answers were wrong, or there was none that was right."""
        return self.counts["num_wrong"] > 0 or self.counts["num_ok"] == 0

    @property
    def is_generator_busy(self) -> bool:
        return max(self.cpu, default=0.0) > BUSY

    def rate(self, name: str) -> float:
        return self.counts[name] / self.window_s if self.window_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON has them: latencies in milliseconds, rates a second; no prompt and no key."""
        plan = self.plan
        return {
            "penstock": __version__,
            "plan": {
                **{name: getattr(plan, name) for name in ("url", "api", "concurrency", "rate", "duration_s")},
                **{name: getattr(plan, name) for name in ("requests", "warmup_s", "ramp_s", "timeout_s")},
                **{name: getattr(plan, name) for name in ("preconnect", "processes", "seed")},
                "stream": plan.is_stream,
                "max_tokens": sorted({one.max_tokens for one in plan.prepared})[:16],
                "slo_ms": {name: value * 1000 for name, value in plan.slo.items()},
            },
            "window_s": round(self.window_s, 4),
            "requests": self.counts["num_begun"],
            "ok": self.counts["num_ok"],
            "failed": self.num_failed,
            "wrong": self.counts["num_wrong"],
            "errors": self.errors,
            "reconnects": self.counts["num_reconnects"],
            "tokens_with_warmup": self.counts["total_tokens"],
            "requests_per_s": round(self.rate("num_ended"), 3),
            "tokens_per_s": round(self.rate("num_tokens"), 3),
            "goodput_per_s": round(self.rate("num_good"), 3) if plan.slo else None,
            "good_share": round(self.counts["num_good"] / max(1, self.counts["num_begun"]), 5) if plan.slo else None,
            **{f"{name}_ms": quantiles(self.latencies[name]) for name in LATENCIES},
            "joined_share": round(self.counts["num_joined"] / max(1, self.latencies["itl"].num), 4),
            "generator_cpu": [round(share, 3) for share in self.cpu],
            "timeline": [tuple(round(value, 2) for value in point) for point in self.timeline],
        }


def quantiles(histogram: Histogram) -> dict[str, float] | None:
    """In milliseconds; None when there is nothing."""
    if not histogram.num:
        return None
    found = {name: round(histogram.quantile(share) / 1e6, 4) for name, share in QUANTILES.items()}
    return {"mean": round(histogram.mean / 1e6, 4), **found, "max": round(histogram.max / 1e6, 4)}


def add_up(plan: Plan, tallies: Sequence[dict[str, Any]], cpu: list[float]) -> Result:
    """One result from the tallies of all processes."""
    latencies = {name: Histogram() for name in LATENCIES}
    counts = dict.fromkeys(COUNTS, 0)
    errors: dict[str, int] = {}
    windows = []
    for tally in tallies:
        for name in LATENCIES:
            latencies[name].merge(Histogram.from_dict(tally[name]))
        for name in COUNTS:
            counts[name] += tally[name]
        for kind, num in tally["errors"].items():
            errors[kind] = errors.get(kind, 0) + num
        if tally["opened_at"]:
            windows.append((tally["opened_at"], tally["ended_at"]))
    window_s = (max(end for _, end in windows) - min(begin for begin, _ in windows)) / 1e9 if windows else 0.0
    return Result(
        plan=plan,
        window_s=window_s,
        latencies=latencies,
        counts=counts,
        errors=dict(sorted(errors.items(), key=lambda item: -item[1])),
        cpu=cpu,
        timeline=_timeline([tally["timeline"] for tally in tallies]),
    )


def _timeline(parts: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float, float]]:
    """Cumulative counts of each process to rates of all; processes tick together within a few milliseconds."""
    sums: list[tuple[float, float, float]] = []
    for points in zip(*parts, strict=False):
        sums.append((points[0][0], sum(point[1] for point in points), sum(point[2] for point in points)))
    found = []
    before = (0.0, 0.0, 0.0)
    for point in sums:
        step_s = point[0] - before[0]
        if step_s > 0.1:
            found.append((point[0], (point[1] - before[1]) / step_s, (point[2] - before[2]) / step_s))
            before = point
    return found
