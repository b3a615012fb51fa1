"""Run the whole operator database and report: python run_opinfo.py [--dtype float32 ...] [--mode forward ...].

Ends with status 1 when the failures are not those that known_exceptions.py lists.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict

import torch
from known_exceptions import reason
from opinfo_cases import DTYPES, MODES, Inapplicable, all_cases, run_case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="'all' stands for every dtype")
    parser.add_argument("--mode", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--shard", default="0/1", help="k/n: the k-th of n equal parts")
    parser.add_argument("--json", help="write failures to this file")
    parser.add_argument("--require", type=float, default=0.0, help="fail below this percentage in any mode")
    options = parser.parse_args()
    part, parts = (int(n) for n in options.shard.split("/"))
    dtypes = DTYPES if options.dtype == ["all"] else tuple(getattr(torch, name) for name in options.dtype)
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    failures: dict[str, str] = {}
    unlisted: list[str] = []
    better: list[str] = []
    for number, case in enumerate(all_cases(dtypes, tuple(options.mode))):
        if number % parts != part or options.match not in case.name:
            continue
        began = time.monotonic()
        try:
            run_case(case)
            tally[case.mode][0] += 1
            if reason(case.name) is not None:
                better.append(case.name)
        except Inapplicable:
            tally[case.mode][2] += 1
        except Exception as error:
            tally[case.mode][1] += 1
            failures[case.name] = f"{type(error).__name__}: {error}"
            if reason(case.name) is not None:
                continue
            unlisted.append(case.name)
            print(f"FAIL {case.name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        if time.monotonic() - began > 20:
            print(f"slow {case.name}: {time.monotonic() - began:.0f} s", flush=True)
    low = 100.0
    for mode, (passed, failed, skipped) in tally.items():
        share = 100.0 * passed / max(1, passed + failed)
        low = min(low, share)
        print(f"{mode:9} {passed} of {passed + failed} = {share:.2f} %   ({skipped} without a CPU result)")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(failures, file, indent=1)
    print(f"{len(failures) - len(unlisted)} failures are known and listed, {len(unlisted)} are not: {unlisted}")
    print(f"listed as failing, but passed: {better}")
    return 1 if low < options.require or unlisted or better else 0


if __name__ == "__main__":
    sys.exit(main())
