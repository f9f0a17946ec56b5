"""``gateway explain``: which rule decides a flow, in the kernel or in userspace, and why.

Asks the running gateway, which knows the names it has resolved; where none runs, the rules of the file alone.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
from typing import Any

from gateway.box import kept_copies, rule_sets
from gateway.cli import configuration, instance
from gateway.core.errors import GatewayError
from gateway.prediction import offline
from gateway.service.control import alive
from gateway.service.rule_sets import absent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    instance.add_arguments(parser)
    parser.add_argument("destination", help="an address or a domain name")
    parser.add_argument("--port", type=int, default=443, help="destination port (443)")
    parser.add_argument("--network", choices=["tcp", "udp"], default="tcp")
    parser.add_argument("--source", default="", metavar="ADDRESS", help="of a LAN host; without it a flow of this host")
    parser.add_argument("--mac", default="", metavar="ADDRESS", help="hardware address of that host")
    parser.add_argument("--interface", default="", metavar="NAME", help="through which it comes in")
    parser.add_argument("--hostname", default="", metavar="NAME", help="name in its DHCP lease")
    parser.add_argument("--process", default="", metavar="PATH", help="executable of a flow of this host")
    parser.add_argument("--user", default="", help="its user, by name, with the groups of a login")
    parser.add_argument("--cgroup", default="", metavar="PATH", help="its cgroup, as /proc/PID/cgroup has it (0::)")
    parser.add_argument("--shown", default="", metavar="NAME", help="what the flow would say of itself (SNI, Host)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    asked = ("destination", "port", "network", "source", "mac", "interface", "hostname", "process", "cgroup", "shown")
    request: dict[str, Any] = {name: getattr(arguments, name) for name in asked}
    request |= {"command": "explain", "uid": -1, "user": arguments.user}
    if arguments.user:
        try:
            entry = pwd.getpwnam(arguments.user)
        except KeyError:
            raise GatewayError(f'no user "{arguments.user}" on this host') from None
        # As its login gives them; a program may have others.
        request |= {"uid": entry.pw_uid, "gids": os.getgrouplist(entry.pw_name, entry.pw_gid)}
    folder, state = instance.folders(arguments)
    if not arguments.config and alive(folder / "control.sock"):
        answer = instance.ask(arguments, request)
    else:
        config = configuration.configuration(arguments)
        copies = kept_copies(config, state)
        answer = offline(config, request, copies.rules, absent(rule_sets(config), copies))
    print(json.dumps(answer) if arguments.json else "\n".join(answer["text"]))
    return 0
