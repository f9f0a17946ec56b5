"""``gateway check``: the form of a configuration; with ``--host``, what this host lacks for it too."""

from __future__ import annotations

import argparse
import sys

from gateway.box import kept_copies, rule_sets
from gateway.cli import configuration, instance
from gateway.cli.doctor import line
from gateway.service.rule_sets import absent
from gateway.shortfall import shortfall


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    instance.add_arguments(parser)
    parser.add_argument("--host", action="store_true", help="name what this host lacks; none of it stops run")


def run(arguments: argparse.Namespace) -> int:
    """1 for a wrong form, and with ``--host`` where something is lacking that the configuration cannot do without."""
    config = configuration.configuration(arguments)
    for note in config.notes:
        print(note, file=sys.stderr)
    for tag in absent(rule_sets(config), kept_copies(config, instance.folders(arguments)[1])):
        print(f'rule set "{tag}" has no copy yet: until run has downloaded it, it matches nothing', file=sys.stderr)
    if not arguments.host:
        return 0
    found = list(shortfall(config))
    for finding in found:
        print(line(finding))
    return 1 if any(finding.needed for finding in found) else 0
