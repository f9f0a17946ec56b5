"""``gateway pause``: new flows go directly, as the plain router carries them, of all or of one device of a LAN.

What runs goes on as it is. Rules of any kind are passed over, those that reject too; names come from dnsmasq.
"""

from __future__ import annotations

import argparse

from gateway.cli import instance
from gateway.config.fields import Duration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    parser.add_argument(
        "--for", type=duration, dest="seconds", metavar="TIME", help='such as "10m"; else until gateway resume'
    )
    parser.add_argument("--device", default="", metavar="DEVICE", help="IP or hardware address, or name of a lease")


def duration(text: str) -> float:
    """Raises argparse.ArgumentTypeError."""
    try:
        return float(Duration.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    answer = instance.ask(arguments, {"command": "pause", "device": arguments.device, "seconds": arguments.seconds})
    device = answer["device"]
    whose = f"of {answer['name'] or device}" if device else "from the LANs and of this host"
    print(f"what begins now {whose} is direct, what runs goes on; gateway resume ends it")
    if device and device.count(":") != 5:
        print(f"of {device} alone: all addresses of a device are paused by its hardware address")
    return 0
