"""The command line: one file for each command, imported when it is called for.

A command file has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments) -> int``; its name is the
command's, with ``_`` for ``-``. Exit status: 0 done, 1 the user can mend it (one line on standard error), 2 usage;
``run`` has 3, a trial that was undone.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from gateway.core.errors import GatewayError

COMMANDS = {
    "down": "stop a gateway and undo everything that it made on this host",
    "run": "run the gateway",
    "status": "what the running gateway says of itself",
    "confirm": "keep what a gateway on trial has made (run --trial)",
    "check": "judge a configuration without starting it",
    "demo": "a home network in namespaces, routed before your eyes",
    "devices": "the devices of the LANs, by their leases",
    "doctor": "what this host can do, and how to mend what it cannot",
    "explain": "which rule decides a flow, where, and why",
    "flows": "the flows that run now, in the kernel and in userspace",
    "init": "look at this host's ports and write a configuration for them",
    "format": "print a configuration in canonical form",
    "groups": "the groups of outbounds, and the member that each uses",
    "lab": "a home network in namespaces, to play in",
    "merge": "join several configuration files into one",
    "pause": "let new flows go directly for a while, all or one device's",
    "parity": "what is built of sing-box, row by row",
    "reload": "apply the changed configuration of a gateway that runs",
    "select": "let a selector use another member",
    "urltest": "let a group probe its members now",
    "resume": "end a pause",
    "version": "print the version",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that ``argv`` names. Returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="gateway", description="A Linux gateway router for sing-box configurations.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), "")
    if chosen == "run" and "--minimal" in words:  # before anything is imported that it leaves out
        import_module("gateway.cli.footprint").minimize()
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            import_module(f"gateway.cli.{name.replace('-', '_')}").add_arguments(command)
    arguments = parser.parse_args(words)
    try:
        return int(import_module(f"gateway.cli.{arguments.command.replace('-', '_')}").run(arguments))
    except GatewayError as error:
        print(f"gateway {arguments.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
