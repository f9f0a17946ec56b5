"""``python -m gateway.lab.server``: the servers of one site in one process, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any

from gateway.lab.server import banner, http, udp
from gateway.lab.server.record import Journal


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway.lab.server", description=__doc__)
    parser.add_argument("--site", required=True, help="name of the host, in every record")
    parser.add_argument("--shared", required=True, type=Path, help="folder of certificates and of the record file")
    parser.add_argument("--address", action="append", help="address to listen on; default all of both families")
    for name in ("http", "https", "udp", "quic", "banner"):
        parser.add_argument(f"--{name}", type=int, action="append", default=[], metavar="PORT")
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    journal = Journal(options.site, options.shared / f"seen-{options.site}.jsonl")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    tls = http.context(options.shared) if options.https else None
    running: list[Any] = []
    addresses = options.address or ["0.0.0.0", "::"]

    def pairs(ports: list[int]) -> list[tuple[str, int]]:
        return [(address, port) for port in ports for address in addresses]

    if options.quic:  # aioquic takes a while to import
        from gateway.lab.server import quic

        running += [await quic.start(journal, *pair, options.shared) for pair in pairs(options.quic)]
    running += [udp.start(journal, *pair) for pair in pairs(options.udp)]
    running += [await http.start(journal, *pair, None) for pair in pairs(options.http)]
    running += [await http.start(journal, *pair, tls) for pair in pairs(options.https)]
    running += [await banner.start(journal, *pair) for pair in pairs(options.banner)]
    await ended.wait()
    for server in running:
        server.close()


asyncio.run(main(arguments()))
