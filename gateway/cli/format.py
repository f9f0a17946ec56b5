"""``gateway format``: a configuration as canonical JSON; comments do not survive."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gateway.cli import configuration
from gateway.config.text import parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    parser.add_argument("-w", "--write", action="store_true", help="write the files back instead of printing them")


def run(arguments: argparse.Namespace) -> int:
    configuration.configuration(arguments)
    for source in configuration.sources(arguments):
        text = json.dumps(parse(source.text, source.file), indent=2, ensure_ascii=False) + "\n"
        if not arguments.write or source.file == "stdin":
            print(text, end="")
        elif text != source.text:
            new = Path(source.file).with_suffix(".json.new")
            new.write_text(text)
            new.replace(source.file)
            print(source.file)
    return 0
