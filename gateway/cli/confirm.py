"""``gateway confirm``: end the trial of a gateway (``run --trial``) and keep what it has made.

From a connection that was opened after the last change of the network: that proves that somebody can come in again.
"""

from __future__ import annotations

import argparse

from gateway.cli import instance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    told = "it is not proved that somebody can come in again: this is the machine's own console"
    parser.add_argument("--here", action="store_true", help=told)


def run(arguments: argparse.Namespace) -> int:
    instance.ask(arguments, {"command": "confirm", "here": arguments.here})
    print("confirmed: the gateway stays")
    for one in instance.ask(arguments, {"command": "status"}).get("uplinks", ()):
        if not one["ready"]:
            waits = one["problem"] or "not ready"
            print(
                f"uplink {one['interface']} ({waits}) will still change the network once it is ready, without a trial"
            )
    return 0
