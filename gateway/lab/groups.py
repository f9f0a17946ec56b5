"""The demo's check of a group: the member that is used dies, and the group moves to another."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

from gateway.kernel import mark
from gateway.lab.forecast import CheckError, expect
from gateway.lab.observe import opened, tracked_mark
from gateway.lab.stage import GROUP_TAG, Stage, poll

PORT = 22


def urltest(stage: Stage) -> str:
    """From a proxy to a direct outbound, so that the kernel carries what userspace carried before."""
    site, server = stage.home.sites[2], stage.lab.service("vps", "xray")
    addresses = (site.ipv4, site.ipv6)
    asked = stage.command("urltest", GROUP_TAG)
    expect(asked.ok, f"the group's members cannot be probed: {asked.err.strip()}")
    for address in addresses:
        told, way = stage.predict(address, source="lan1", port=PORT), stage.way(banner(stage, address))
        expect((told.way, told.place) == (GROUP_TAG, "userspace"), f"predicted {told}: {asked.out.strip()}")
        expect(way == "proxy", f"before, the group's flows went {way}: {asked.out.strip()}")
    server.signal(signal.SIGKILL)
    server.wait()
    died = time.monotonic()

    def moved() -> bool:
        with contextlib.suppress(CheckError, OSError):
            return stage.way(banner(stage, site.ipv4)) == "direct"
        return False

    poll(moved, "the group does not leave a member that is dead")
    took = time.monotonic() - died
    # The rules are compiled anew beside what goes on.
    poll(lambda: stage.predict(site.ipv4, source="lan1", port=PORT).place == "kernel", "the kernel's verdict stays")
    for address, family in zip(addresses, ("ipv4", "ipv6"), strict=True):
        told, way = stage.predict(address, source="lan1", port=PORT), stage.way(client := banner(stage, address))
        expect((told.way, told.place) == (GROUP_TAG, "kernel"), f"predicted {told}, after the group has moved")
        expect(way == "direct", f"after, the group's flows went {way}")
        rows = stage.conntrack("-f", family, "-p", "tcp", "--orig-dst", address, "--dport", str(PORT))
        carried = [row for row in rows if f"dst={client} " in row or f"src={client} " in row]
        marks = {tracked_mark(row) & mark.CLASS for row in carried}
        expect(mark.DIRECT in marks, f"not the kernel's: {carried}")
    return f"its proxy killed, the group was direct after {took:.1f} s: {site.host} saw {stage.wan4}, by the kernel"


def banner(stage: Stage, address: str) -> str:
    """Whom the site says it sees, by a service that speaks first. Raises CheckError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with opened(stage, "lan1", address, PORT, family) as sock:
        try:
            words = sock.recv(200).decode().split()
        except OSError as error:
            raise CheckError(f"{address}: {error}") from None
    expect(len(words) > 1, f"{address}: closed without a word")
    return words[1]
