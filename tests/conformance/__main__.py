"""`python -m tests.conformance --worker "command" [scenario …]`: the outcome of each; status 1 if one fails."""

from __future__ import annotations

import argparse
import sys
import time

from tests import conformance
from tests.conformance.kit import Kit
from tests.conformance.scenarios import SCENARIOS
from tests.support.servers import start_server


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tests.conformance", description=conformance.__doc__, formatter_class=form
    )
    parser.add_argument("--worker", required=True, metavar="COMMAND", help="starts one worker")
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}; without one: all")
    given = parser.parse_args(arguments)
    unknown = set(given.scenario) - SCENARIOS.keys()
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    server = start_server()
    failed = []
    try:
        for name in given.scenario or SCENARIOS:
            kit, started = Kit(server.url, given.worker), time.monotonic()
            try:
                SCENARIOS[name](kit)
                say(f"ok      {name} ({time.monotonic() - started:.1f} s)")
            except Exception as error:
                failed.append(name)
                doc = (SCENARIOS[name].__doc__ or "").strip()
                say(f"FAILED  {name}: {type(error).__name__}: {error}\n        {doc}\n{kit.output()}")
            finally:
                kit.close()
    finally:
        server.stop()
    say(f"{len(failed)} of {len(given.scenario or SCENARIOS)} failed" if failed else "all rules are kept")
    return 1 if failed else 0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
