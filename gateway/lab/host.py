"""A host of a lab: run programs on it, call Python on it, ask what it listens on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from gateway.lab import process
from gateway.lab.netns import LabError, Place
from gateway.lab.process import Process, Result, User
from gateway.lab.topology import Host as Plan
from gateway.lab.topology import Listener

T = TypeVar("T")
# Debian keeps ip, nft and dnsmasq in sbin, which an ordinary user's PATH lacks.
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LISTENING = {"tcp": "0A", "udp": "07"}  # state columns of /proc/net/tcp and udp: LISTEN, unconnected


class Host:
    """One network namespace with its own resolv.conf and its own cgroup.

    ``namespace`` is its name for ``ip -n``; ``group`` its cgroup, where a gateway's programs may be attached;
    ``folder`` holds its resolv.conf and the output of what ran on it.
    """

    def __init__(self, plan: Plan, namespace: str, group: Path, folder: Path) -> None:
        self.plan = plan
        self.name = plan.name
        self.namespace = namespace
        self.group = group
        self.folder = folder
        self.resolv_conf = folder / "resolv.conf"
        if not self.resolv_conf.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.resolv_conf.write_text("".join(f"nameserver {server}\n" for server in plan.nameservers))
        self.place = Place(namespace, self.resolv_conf)

    @property
    def addresses(self) -> list[str]:
        """The planned addresses, without prefix length, IPv4 first."""
        every = [text.partition("/")[0] for texts in self.plan.addresses.values() for text in texts]
        return sorted(every, key=lambda text: ":" in text)

    def _address(self, six: bool) -> str:
        found = next((text for text in self.addresses if (":" in text) == six), None)
        if found is None:
            raise LabError(f"{self.name} has no planned IPv{6 if six else 4} address")
        return found

    @property
    def ipv4(self) -> str:
        """Its first planned IPv4 address; raises LabError if it has none."""
        return self._address(six=False)

    @property
    def ipv6(self) -> str:
        """Its first planned IPv6 address; raises LabError if it has none."""
        return self._address(six=True)

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        user: User | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        cwd: str | Path | None = None,
        within: Path | None = None,
    ) -> Process:
        """Start a program on this host, in the cgroup ``within`` or one of its own; it is killed with the lab at the
        latest."""
        path = os.environ.get("PATH", "")
        variables = {"PATH": f"{path}:{PATHS}" if path else PATHS, **(environment or {})}
        return process.start(self.place, self.group, self.folder, command, user, variables, stdin, cwd, within)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        timeout: float = 30,
        check: bool = False,
        user: User | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        cwd: str | Path | None = None,
        within: Path | None = None,
    ) -> Result:
        """Run a program to its end. LabError after ``timeout`` s, and with ``check`` for a code other than 0."""
        running = self.popen(command, user=user, environment=environment, stdin=stdin, cwd=cwd, within=within)
        result = running.wait(timeout)
        if check and not result.ok:
            raise LabError(f"{self.name}: {' '.join(map(str, command))}: exit {result.code}\n{running.told()}")
        return result

    def call(self, work: Callable[[], T], timeout: float | None = 60) -> T:
        """``work()`` in this process but in the host's network; the sockets it makes stay the host's."""
        return self.place.call(work, timeout)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this host, usable from any thread."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def listeners(self) -> set[Listener]:
        """Protocol and port of every listening TCP and unconnected UDP socket, IPv4 and IPv6."""

        def work() -> set[Listener]:
            found: set[Listener] = set()
            for table in ("tcp", "tcp6", "udp", "udp6"):
                for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                    words = line.split()
                    if table.startswith("tcp") and words[3] == LISTENING["tcp"]:
                        found.add(("tcp", int(words[1].rpartition(":")[2], 16)))
                    elif table.startswith("udp") and words[3] == LISTENING["udp"]:
                        found.add(("udp", int(words[1].rpartition(":")[2], 16)))
            return found

        return self.call(work)

    def wait_listening(self, wanted: Sequence[Listener], by: Process | None = None, timeout: float = 30) -> None:
        """Wait for sockets; LabError after ``timeout`` s, or at once when ``by``, who should open them, has ended."""
        deadline = time.monotonic() + timeout
        while missing := set(wanted) - self.listeners():
            told = f"\n{by.told()}" if by else ""
            if by is not None and not by.running:
                raise LabError(f"{self.name}: {by.name} ended, with nothing on {sorted(missing)}{told}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: nothing listens on {sorted(missing)} after {timeout} s{told}")
            time.sleep(0.01)

    def close(self) -> None:
        self.place.close()
