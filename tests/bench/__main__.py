"""``gw bench NAME [--json] [--rounds N]``: us beside a peer, alternating, in one run."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module

NAMES = ("shadowsocks",)


def main() -> int:
    parser = argparse.ArgumentParser(prog="gw bench", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (5); medians are printed")
    options = parser.parse_args()
    rows = import_module(f"tests.bench.{options.name}").run(max(1, options.rounds))
    document = {"bench": options.name, "rows": rows}
    if options.json:
        print(json.dumps(document))
        return 0
    for row in rows:
        figures = f"{row['ours']:10.2f} {row['peer']:10.2f} {row['unit']:10} {row['ratio']:6.2f}"
        print(f"{row['case']:52} {figures}  against {row['peer_name']}")
    return 0


sys.exit(main())
