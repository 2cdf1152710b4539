"""From what `bench.scale` measured to its section and picture of `docs/performance.md`, and to the costs that
`penstock plan` computes with. Pure; knows no process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.curves import render_svg
from bench.report import ROOT
from penstock.planner.capacity import Demand, carries

BEGIN = "<!-- scale: written by `python -m bench.scale` -->\n"
END = "<!-- /scale -->\n"
PICTURE = ROOT / "docs" / "img" / "scale.svg"

ROLES = {"gateway": "gateway", "worker": "worker", "redis": "Redis"}
MANY = 100  # streams from which on a token's cost is not that of idle processes
_PLAN = Demand(tokens_per_s=1, streams=1)  # its defaults are those of `penstock plan`


def _many(held: Sequence[dict[str, Any]], least: int = MANY) -> list[dict[str, Any]]:
    """The cells with many streams; if there is none, the one with the most."""
    most = max(cell["streams"] for cell in held)
    return [cell for cell in held if cell["streams"] >= min(least, most)]


def costs_of(found: dict[str, Any]) -> dict[str, Any]:
    """What `penstock.planner.costs` reads. Of a token the dearest cell with many streams counts, of memory the
    dearest with 1,000 or more, so that a plan errs towards more.
    """
    at, many, most = found["about"], _many(found["held"]), _many(found["held"], 1000)
    token = {role: max(cell["us_per_token"][role] for cell in many) for role in ROLES}
    request = {role: round(max(0.0, found["requests"]["us_per_token"][role] - token[role]), 3) for role in ROLES}
    roles = {
        role: {
            "us_per_token": token[role],
            "us_per_request": request[role],
            "base_mb": found["idle_mb"][role],
            "kb_per_stream": max(0.0, *(cell["kb_per_stream"][role] for cell in most)),
            "redis_connections": found["redis_connections"][role],
        }
        for role in ("gateway", "worker")
    }
    redis = {
        "us_per_token": token["redis"],
        "us_per_request": request["redis"],
        "base_mb": found["idle_mb"]["redis"],
        **_memory(found["held"]),
        **{name: max(cell[f"redis_{name}"] for cell in many) for name in ("in_bytes_per_token", "out_bytes_per_token")},
    }
    about = {
        **{name: at[name] for name in ("date", "command", "cpu", "cores", "server")},
        "penstock": at["packages"]["penstock"],
        "streams": [cell["streams"] for cell in many],
    }
    return {"about": about, **roles, "redis": redis, "client": {"bytes_per_token": found["client_bytes_per_token"]}}


def _memory(held: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """What Redis keeps: a token's bytes by the cell with the longest streams, a request's by what remains with many."""
    clean = [cell for cell in held if cell["redis_bytes_per_token"] is not None]
    if not clean:
        return {"bytes_per_token": None, "bytes_per_request": None}
    token = max(_many(clean), key=lambda cell: float(cell["tokens_each"]))["redis_bytes_per_token"]
    requests = [cell["redis_bytes_per_stream"] - cell["tokens_each"] * token for cell in _many(clean, 1000)]
    return {"bytes_per_token": token, "bytes_per_request": round(max(0.0, *requests), 1)}


def draw(found: dict[str, Any]) -> str:
    curves = {
        says: [(float(cell["streams"]), cell["us_per_token"][role]) for cell in found["held"]]
        for role, says in ROLES.items()
    }
    return render_svg(curves, "CPU a token against streams open", "streams open at once", "CPU of a token, us")


def held_table(held: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| streams open | a step | tokens/s | CPU of a token: gateway | worker | Redis "
        "| memory of a stream: gateway | worker | Redis, its tokens kept |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in held:
        cpu = " | ".join(f"{cell['us_per_token'][role]:.1f} us" for role in ROLES)
        # What one stream adds to a process cannot be told from the noise of its memory.
        is_told = cell["streams"] >= MANY
        memory = " | ".join(f"{cell['kb_per_stream'][role]:.1f} kB" if is_told else "–" for role in ROLES)
        paced = f"{cell['step_ms']:,.0f} ms | {cell['tokens_per_s']:,.0f}"
        rows.append(f"| {cell['streams']:,} | {paced} | {cpu} | {memory} |")
    return "\n".join(rows) + "\n"


def grid_table(grid: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| gateway processes | workers | tokens/s | CPU of a token: gateways | workers | Redis "
        "| cores used: gateways | workers | Redis |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in grid:
        cpu = " | ".join(f"{cell['us_per_token'][role]:.1f} us" for role in ROLES)
        cores = " | ".join(f"{cell['tokens_per_s'] * cell['us_per_token'][role] / 1e6:.2f}" for role in ROLES)
        failed = f" ({cell['failed']:,} failed)" if cell["failed"] else ""
        speed = f"{cell['tokens_per_s']:,.0f}{failed}"
        rows.append(f"| {cell['gateways']} | {cell['workers']} | {speed} | {cpu} | {cores} |")
    return "\n".join(rows) + "\n"


def cost_table(costs: dict[str, Any]) -> str:
    """What one process carries, of answers as `penstock plan` has them by default."""
    roles = [costs[role] for role in ROLES]
    token = " | ".join(f"{role['us_per_token']:.1f} us" for role in roles)
    request = " | ".join(f"{role['us_per_request']:,.0f} us" for role in roles)
    length, share = _PLAN.tokens_per_answer, _PLAN.headroom

    def carried(cores: float) -> str:
        each = (carries(role["us_per_token"], role["us_per_request"], length, cores) for role in roles)
        return " | ".join(f"{value / 1000:,.0f}k" for value in each)

    rows = [
        "| one process | gateway | worker | Redis |",
        "|---|--:|--:|--:|",
        f"| CPU of a token in a frame of its own | {token} |",
        f"| CPU of a request, in addition | {request} |",
        f"| tokens/s of a whole core, {length:g} tokens an answer | {carried(1.0)} |",
        f"| tokens/s at {share:g} of a core, as `penstock plan` counts | {carried(share)} |",
    ]
    return "\n".join(rows) + "\n"


def table_of(found: dict[str, Any]) -> str:
    """All tables, for the terminal."""
    return "\n".join((held_table(found["held"]), grid_table(found["grid"]), cost_table(costs_of(found))))


def render(found: dict[str, Any]) -> str:
    """What stands between the markers of the page."""
    at, costs = found["about"], costs_of(found)
    redis, edge = costs["redis"], costs["client"]["bytes_per_token"]
    foreign = max(cell["foreign_cores"] for cell in (*found["held"], *found["grid"], found["requests"]))
    memory = "" if redis["bytes_per_token"] is None else (
        f"Redis keeps {redis['bytes_per_token']:.0f} bytes a token and {redis['bytes_per_request']:,.0f} a request. "
    )  # fmt: skip
    return (
        f"\n{at['date']}, `{at['command']}`: {at['measure_s']:g} s a cell, on {at['cores']} cores of {at['cpu']} that "
        f"load and servers share, {at['system']}, Python {at['python']}, {at['server']}. Other programs used at most "
        f"{foreign:.2f} cores meanwhile.\n\n"
        "![CPU time a token by role against the number of open streams](img/scale.svg)\n\n"
        f"{held_table(found['held'])}\n"
        "No compute, 256 streams at a time. More processes share the same cores here, so tokens/s do not predict "
        "a machine with more cores: compare the CPU of a token by role.\n\n"
        f"{grid_table(found['grid'])}\n"
        f"{cost_table(costs)}\n"
        f"{memory}A token is {edge:.0f} bytes to the client, {redis['in_bytes_per_token']:.0f} into Redis and "
        f"{redis['out_bytes_per_token']:.0f} out of it.\n\n"
    )
