"""Fuzz a server: `python -m tests.fuzz --minutes 30 [--target http] [--seed 1] [--first 0]`.

Runs the targets one after the other, each for as long, and prints what was found. A finding's case is run again with
`--first` its number, under the same seed. Ends with status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.campaign import TARGETS, campaign, print_line


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long each target is fuzzed")
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    options = parser.parse_args()
    found_any = False
    for target in TARGETS if options.target == "all" else (options.target,):
        with campaign(target, options.seed) as running:
            result = running.run(options.minutes * 60, options.first, print_line)
        found_any |= bool(result.findings)
        print(f"{target}: {result.cases} cases, {len(result.findings)} findings")
        for finding in result.findings:
            print(f"  {finding}")
        if result.held:
            print(f"  held once warm {result.held[0]}\n  held at the end {result.held[-1]}")
    return 1 if found_any else 0


if __name__ == "__main__":
    sys.exit(main())
