"""A topology brought to life, and taken down again.

::

    with Lab(topology) as lab:
        lab.host("lan1").run(["curl", "-s", "http://198.51.100.7/"]).json()
        lab.seen("site1")

Each lab has a random id in every name it makes, so that two do not meet. It goes when the ``with`` block ends, also by
an exception, Ctrl-C or SIGTERM; what a SIGKILL leaves is swept by the next one (:mod:`gateway.lab.state`).
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from gateway.lab import cgroup, netns, state, wiring
from gateway.lab.host import PATHS, Host
from gateway.lab.netns import LabError
from gateway.lab.process import Process
from gateway.lab.topology import Link, Service, Topology

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lab:
    """A laboratory. ``folder`` is where its files are; ``shared`` the part that every service may use.

    ``standing``: it outlives this process until ``gateway lab down``. Needs root; raises LabError where something
    cannot be made, and then leaves nothing behind.
    """

    def __init__(self, topology: Topology, *, standing: bool = False) -> None:
        self.topology = topology
        self.standing = standing
        self.hosts: dict[str, Host] = {}
        self.services: dict[str, Process] = {}
        self._state: state.State | None = None
        self._default: list[signal.Signals] = []

    @property
    def state(self) -> state.State:
        if self._state is None:
            raise LabError("the lab is not up")
        return self._state

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def folder(self) -> Path:
        return self.state.folder

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def host(self, name: str) -> Host:
        """The host called ``name``; raises LabError if there is none."""
        try:
            return self.hosts[name]
        except KeyError:
            raise LabError(f"no host {name}; there are {', '.join(self.hosts) or 'none'}") from None

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.standing or kind is not None:
            self.down()
        else:
            self.leave()

    def up(self) -> Lab:
        """Make everything and wait until all services listen."""
        state.sweep()
        self._catch_endings()
        try:
            self._state = state.new(self.topology.name, [host.name for host in self.topology.hosts], self.standing)
            self._build()
            self._serve()
        except BaseException:
            self.down()
            raise
        return self

    def _build(self) -> None:
        Path(self.state.group).mkdir()
        self.shared.mkdir()
        for folder in (self.folder, self.shared):
            folder.chmod(0o755)  # programs run by other users read the certificates, whatever our umask
        for name, text in self.topology.shared.items():
            (self.shared / name).write_text(text)
            (self.shared / name).chmod(0o644)
        for plan in self.topology.hosts:
            namespace = self.state.namespaces[plan.name]
            group = Path(self.state.group, plan.name)
            group.mkdir()
            netns.create(namespace)
            host = Host(plan, namespace, group, self.folder / "hosts" / plan.name)
            self.hosts[plan.name] = host
            values = {"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0"} if plan.quick_ipv6 else {}
            host.call(lambda values={**values, **plan.sysctls}: _set(values))  # type: ignore[misc]
        for step in wiring.batches(self.topology, self.state.namespaces):
            self._batch(step)

    def _batch(self, step: Iterable[tuple[str, list[str]]]) -> None:
        """Run ``ip`` once for each host that has lines, all at once."""
        running = []
        for name, lines in step:
            command = ["ip", "-n", self.state.namespaces[name], "-batch", "-"]
            environment = {"PATH": PATHS, "LC_ALL": "C"}
            child = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            assert child.stdin is not None
            child.stdin.write("\n".join(lines) + "\n")
            child.stdin.close()
            child.stdin = None
            running.append((name, lines, child))
        for name, lines, child in running:
            told, _ = child.communicate()
            if child.returncode:
                raise LabError(f"{name}: ip refused: {told.strip()}\n" + "\n".join(lines))

    def _serve(self) -> None:
        for service in self.topology.services:
            self.start(service, wait=False)
        for service in self.topology.services:
            self.host(service.host).wait_listening(service.ready, self.services[f"{service.host}/{service.name}"])

    def start(self, service: Service, *, wait: bool = True) -> Process:
        """Start a service, by default waiting until it listens; restarts one of the same name that has ended."""
        folder = self.folder / "services" / f"{service.host}-{service.name}"
        folder.mkdir(parents=True, exist_ok=True)
        fill: Callable[[str], str] = lambda text: text.replace("{folder}", str(folder)).replace(  # noqa: E731
            "{shared}", str(self.shared)
        )
        for name, text in service.files.items():
            (folder / name).write_text(fill(text))
        host = self.host(service.host)
        process = host.popen([fill(word) for word in service.command])
        self.services[f"{service.host}/{service.name}"] = process
        if wait:
            host.wait_listening(service.ready, process)
        return process

    def service(self, host: str, name: str) -> Process:
        """A running service, to be signalled or killed."""
        return self.services[f"{host}/{name}"]

    def service_folder(self, host: str, name: str) -> Path:
        """Where that service has its files."""
        return self.folder / "services" / f"{host}-{name}"

    def connect(self, link: Link) -> None:
        """Plug in a cable while the lab runs; planned addresses of the new interfaces are set."""
        self._batch([(link.left.host, wiring.link_lines(link, self.state.namespaces))])
        ends = {link.left.host, link.right.host}
        self._batch([(name, wiring.host_lines(self.host(name).plan, (link,), first=False)) for name in ends])

    def disconnect(self, host: str, interface: str) -> None:
        """Pull a cable out: both of its interfaces vanish."""
        self._batch([(host, [f"link del dev {interface}"])])

    def seen(self, host: str, service: str = "", after: float = 0) -> list[dict[str, Any]]:
        """What the site on ``host`` says it saw: records of :mod:`gateway.lab.server.record`, oldest first.

        ``service`` picks one kind (``http`` ``https`` ``udp`` ``quic`` ``banner``), ``after`` those from that
        ``time.time()`` on.
        """
        file = self.shared / f"seen-{host}.jsonl"
        if not file.exists():
            return []
        # A line without its end is still being written.
        lines = file.read_text().rpartition("\n")[0].splitlines()
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [entry for entry in records if entry["at"] >= after and service in ("", entry["service"])]

    def wait_seen(
        self, host: str, wanted: Callable[[dict[str, Any]], bool], *, after: float = 0, timeout: float = 10
    ) -> dict[str, Any]:
        """The first record that is ``wanted``; LabError with all records after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            records = self.seen(host, after=after)
            for entry in records:
                if wanted(entry):
                    return entry
            if time.monotonic() > deadline:
                raise LabError(f"{host} did not see it within {timeout} s; it saw {records}")
            time.sleep(0.02)

    def down(self) -> None:
        """Take it down: processes, namespaces, cgroup, files. Does nothing the second time."""
        if self._state is None:
            return self._release_endings()
        main = threading.current_thread() is threading.main_thread()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS) if main else None
        try:
            self._close()
            state.remove(self._state)
            self._state = None
        finally:
            self._release_endings()
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def leave(self) -> None:
        """Let a standing lab stand, and forget it here."""
        self._close()
        self._release_endings()

    def _close(self) -> None:
        with contextlib.suppress(LabError, OSError):
            cgroup.kill(Path(self.state.group)) if not self.standing else None
        for host in self.hosts.values():
            host.close()
        self.hosts.clear()
        if not self.standing:
            for process in self.services.values():
                process.reap()
        self.services.clear()

    def _catch_endings(self) -> None:
        """SIGTERM and SIGHUP end a program without unwinding it, unless they are made into an exception."""
        if threading.current_thread() is threading.main_thread():
            self._default = [number for number in ENDINGS if signal.getsignal(number) == signal.SIG_DFL]
            for number in self._default:
                signal.signal(number, _end)

    def _release_endings(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in self._default:
                signal.signal(number, signal.SIG_DFL)
            self._default = []


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _set(values: dict[str, str]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys/net", name)
        if path.exists() or not name.startswith("bridge/"):  # absent where br_netfilter is
            path.write_text(value)


def attach(name: str, topology: Topology) -> Lab:
    """A handle on a standing lab, for a second process; it does not own the lab."""
    lab = Lab(topology, standing=True)
    lab._state = state.load(name)
    for plan in topology.hosts:
        group = Path(lab.state.group, plan.name)
        lab.hosts[plan.name] = Host(plan, lab.state.namespaces[plan.name], group, lab.folder / "hosts" / plan.name)
    return lab
