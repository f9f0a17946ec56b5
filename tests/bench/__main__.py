"""``gw bench [NAME...] [--json] [--runs N] [--case WORD]``: us beside a peer, alternating, in one run.

Without a name all of them. Progress, and the peer's configuration, go to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib import import_module

from tests.bench.measure import Bench, line, say

NAMES = ("forward", "steer", "relay", "tun", "shadowsocks", "trojan", "vless", "dns", "start")


def main() -> int:
    parser = argparse.ArgumentParser(prog="gw bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)} (all)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each side (5); medians are printed")
    parser.add_argument("--case", action="append", default=[], metavar="WORD", help="only cases whose name has it")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if os.geteuid() != 0:
        parser.error("needs root: it makes network namespaces")
    documents = []
    for name in options.names or NAMES:
        begun = time.monotonic()
        bench = Bench(max(1, options.runs), options.case)
        import_module(f"tests.bench.{name}").run(bench)
        documents.append({"bench": name, "rows": bench.rows})
        say(f"{name}: {time.monotonic() - begun:.0f} s")
        if not options.json:
            print(f"\n{name:57} {'ours':>10}{'peer':>11} {'unit':12} {'ratio':>8}")
            print(*map(line, bench.rows), sep="\n", flush=True)
    if options.json:
        print(json.dumps(documents[0] if len(documents) == 1 else {"benches": documents}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
