"""``gateway merge OUT``: several configuration files as one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gateway.cli import configuration
from gateway.config.merge import merge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    parser.add_argument("output", metavar="OUT", help="file to write")


def run(arguments: argparse.Namespace) -> int:
    configuration.configuration(arguments)
    text = json.dumps(merge(configuration.sources(arguments)), indent=2, ensure_ascii=False) + "\n"
    Path(arguments.output).write_text(text)
    return 0
