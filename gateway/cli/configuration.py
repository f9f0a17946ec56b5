"""The arguments that name a configuration, shared by the commands that read one."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway import catalog
from gateway.config.load import load, read
from gateway.config.merge import Source
from gateway.config.root import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for words, metavar, text in (
        (("-c", "--config"), "FILE", 'configuration file, repeatable; "stdin" reads standard input (config.json)'),
        (("-C", "--config-directory"), "DIR", "every *.json of a directory, repeatable"),
    ):
        parser.add_argument(*words, action="append", default=[], metavar=metavar, help=text)
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
