"""The arguments that name a configuration, shared by the commands that read one."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway import catalog
from gateway.config.load import load, read
from gateway.config.merge import Source
from gateway.config.root import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", action="append", default=[], metavar="FILE",
                        help='configuration file, repeatable; "stdin" reads standard input (default: config.json)')  # fmt: skip
    parser.add_argument("-C", "--config-directory", action="append", default=[], metavar="DIR",
                        help="every *.json of a directory, repeatable")  # fmt: skip
    parser.add_argument("-D", "--directory", default="", metavar="DIR", help="where relative paths start")


def sources(arguments: argparse.Namespace) -> list[Source]:
    """The named files. Raises ConfigError."""
    paths = arguments.config
    if not paths and not arguments.config_directory:
        paths = ["config.json"]
    return read(paths, arguments.config_directory)


def configuration(arguments: argparse.Namespace) -> Config:
    """The checked configuration. Raises ConfigError."""
    directory = Path(arguments.directory) if arguments.directory else Path.cwd()
    return load(sources(arguments), catalog, directory)
