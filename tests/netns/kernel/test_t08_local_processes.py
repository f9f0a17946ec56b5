"""Flows of the router itself by program, user, group and cgroup: a whole gateway, the verdict as the server sees it.

What a rule holds for is sent to another port of the server than it asked for, whichever plane carries it there.
"""

from __future__ import annotations

import itertools
import json
import os
import pwd
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.config.text import strip
from gateway.kernel import cgroup, conntrack, mark
from gateway.lab.lab import Lab
from gateway.lab.process import User
from gateway.lab.stage import poll
from gateway.lab.topology import End, Host, Link, Route, Topology

from .whole import ROOT, Whole

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t08")]

SITES = {4: "203.0.113.2", 6: "2001:db8:3::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
NEAR, FAR = 7001, 7002
LISTED, MEMBER = 4001, 4100
LOGIN, ALIAS = "games", "players"
"""Two names of one user."""
TOPOLOGY = Topology(
    "t08",
    (
        Host("client", addresses={"eth0": ("192.168.7.2/24",)}),
        Host("gateway", addresses={"lan0": (), "wan0": ()}),
        Host("server", addresses={"eth0": tuple(f"{site}/{64 if ':' in site else 24}" for site in SITES.values())},
             routes=(Route("default", "203.0.113.1"), Route("default6", "2001:db8:3::1"))),
    ),
    (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("server", "eth0"))),
)  # fmt: skip
ASK = """
import ctypes, json, os, socket, sys, threading
def ask(way, family, host, port):
    stream = way == "tcp"
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6,
                         socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    sock.settimeout(10)
    global own
    # A flow with the ports of one that was is that one, for conntrack and for userspace.
    sock.bind(("", own))
    own += 1
    if way == "unconnected":
        # One datagram: the first one counts.
        sock.sendto(b"?", (host, port))
        answer = sock.recvfrom(100)[0]
    else:
        sock.connect((host, port))
        sock.send(b"?")
        answer = sock.recv(100)
    mark = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 36, 4), sys.byteorder)
    return [way, family, answer.decode(), sock.getsockname()[1], mark >> 27]
def every():
    return [ask(way, family, host, port) for family, host in ((4, site4), (6, site6))
            for way in ("tcp", "connected", "unconnected")]
site4, site6, port, own, work, *words = sys.argv[1:]
port, own = int(port), int(own)
exec(work)
"""
"""Each way of sending, in both families."""
PLAIN = "print(json.dumps(every()))"
Asked = list[tuple[str, int, str, int, int]]
"""Way, family, who answered, own port, class of the socket."""
UNKNOWN = {mark.UNKNOWN}


class Server:
    """Says at each port and in each protocol which one it is."""

    def __init__(self, host: Any, ports: dict[int, str], sites: dict[int, str] = SITES) -> None:
        self.sockets = []
        for port, name in ports.items():
            for family, site in sites.items():
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = host.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((site, port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen(16)
                    self.sockets.append(sock)
                    threading.Thread(target=self.serve, args=(sock, name.encode()), daemon=True).start()

    @staticmethod
    def serve(sock: socket.socket, name: bytes) -> None:
        try:
            while True:
                if sock.type == socket.SOCK_DGRAM:
                    sock.sendto(name, sock.recvfrom(100)[1])
                else:
                    flow, _ = sock.accept()
                    with flow:
                        flow.recv(100)
                        flow.sendall(name)
        except OSError:
            return

    def close(self) -> None:
        for sock in self.sockets:
            sock.shutdown(socket.SHUT_RDWR) if sock.type == socket.SOCK_STREAM else None
            sock.close()


class Way(Whole):
    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.bin = lab.folder / "bin"
        self.own = itertools.count(10_000, 20)
        """First of the own ports of each run."""
        mount = cgroup.mount_point()
        self.listed = self.gateway.group / "listed"
        kept = {"process_path_regex": "/kept/", "action": "bypass"}
        rules: list[dict[str, Any]] = [
            {"process_path_regex": "/kept/"},
            {"process_path": [str(self.bin / "path" / "tool"), str(self.bin / "resolver")]},
            {"process_name": ["named"]},
            {"process_path_regex": ["/regex/[a-z]+$"]},
            {"user_id": [LISTED]},
            {"user": [ALIAS]},
            {"group_id": [MEMBER]},
            {"group": ["daemon"]},
            {"cgroup": f"/{self.listed.relative_to(mount)}"},
        ]
        self.rules = [kept, *({**rule, "outbound": "far", "override_port": FAR} for rule in rules)]
        self.path.write_text(json.dumps({
            "outbounds": [
                {"type": "direct", "tag": "direct"}, {"type": "direct", "tag": "far", "connect_timeout": "9s"}
            ],
            "route": {"rules": self.rules, "final": "direct", "find_process": True},
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {
                    "address": ["203.0.113.1/24", "2001:db8:3::1/64"], "gateway": list(SITES.values())}}],
                "lans": [{"interface": "lan0", "address": ["192.168.7.1/24"]}],
                "kernel": {"cgroup": str(self.gateway.group), "offload": "off"},
            },
        }))  # fmt: skip
        self.start()
        poll(self.ready, self.process.told(), 40)

    def start(self) -> None:
        """With one user more, who has the number of another: where the gateway alone sees it."""
        file = self.lab.folder / "passwd"
        row = pwd.getpwnam(LOGIN)
        file.write_text(f"{Path('/etc/passwd').read_text()}{ALIAS}:x:{row.pw_uid}:{row.pw_gid}::/:/bin/sh\n")
        command = [sys.executable, "-m", "gateway", "run", "-c", str(self.path), "--instance", self.instance]
        script = f'mount --bind {file} /etc/passwd && exec "$0" "$@"'
        self.process = self.gateway.popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, *command], cwd=ROOT
        )

    def ready(self) -> bool:
        told = self.status()
        routes = "".join(str(self.gateway.run(["ip", family, "route"]).out) for family in ("-4", "-6"))
        return told.get("state") == "running" and told["steering"] and routes.count("default via") == 2

    def reload(self) -> None:
        """Apply what the file has."""
        before = len(self.process.err.read_text())
        os.kill(self.process.pid, signal.SIGHUP)

        def said() -> str:
            lines = self.process.err.read_text()[before:].splitlines()
            return next((line for line in lines if "configuration applied" in line or "configuration kept" in line), "")

        assert "configuration applied" in str(poll(said, "no word of the reload"))

    def program(self, name: str) -> Path:
        """A copy of the interpreter."""
        target = self.bin / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path("/usr/bin/python3").resolve(), target)
        return target

    def ask(
        self, program: Path | str, work: str = PLAIN, *words: str, before: str = "", argv0: str = "",
        user: User | None = None, sites: dict[int, str] = SITES, port: int = NEAR,
    ) -> Asked:  # fmt: skip
        """Who answers the program; ``before``: shell commands that its process runs first."""
        script = f'{before or ":"} && exec -a "$0" "$@"'
        arguments = self.arguments(program, sites, port, work, *words)
        done = self.gateway.run(["bash", "-c", script, argv0 or str(program), *arguments], user=user, check=True)
        return [tuple(one) for one in done.json()]

    def arguments(self, program: Path | str, sites: dict[int, str], port: int, *words: str) -> list[str]:
        return [str(program), "-I", "-S", "-c", ASK, *sites.values(), str(port), str(next(self.own)), *words]

    def classes(self, asked: Asked) -> list[int]:
        """Of these flows, as conntrack has them."""
        entries = self.gateway.call(lambda: list(conntrack.dump(0, 0)))
        found = []
        for way, family, _, port, _ in asked:
            (one,) = {
                entry.mark & mark.CLASS for entry in entries
                if entry.source.port == port and entry.source.ip is not None and entry.source.ip.version == family
                and entry.protocol == (6 if way == "tcp" else 17) and entry.destination.port == NEAR
            }  # fmt: skip
            found.append(one)
        return found


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    if os.geteuid():
        pytest.skip("needs root")
    with (
        Lab(TOPOLOGY) as lab,
        closing(Server(lab.host("server"), {NEAR: "near", FAR: "far"})),
        closing(Way(lab)) as way,
    ):
        # Other users start the copies.
        for folder in (lab.folder, *lab.folder.parents):
            if folder.stat().st_mode & 0o777 == 0o700 and folder != Path("/root"):
                folder.chmod(0o711)
        yield way


def answers(asked: Asked) -> set[str]:
    assert [one[:2] for one in asked] == [
        (way, family) for family in (4, 6) for way in ("tcp", "connected", "unconnected")
    ]  # fmt: skip
    return {one[2] for one in asked}


def sockets(asked: Asked) -> set[int]:
    """Their classes."""
    return {one[4] for one in asked}


def test_a_path(way: Way) -> None:
    listed, other = way.program("path/tool"), way.program("other/tool")
    assert answers(way.ask(listed)) == {"far"}
    assert answers(way.ask(other)) == {"near"}


def test_a_name(way: Way) -> None:
    assert answers(way.ask(way.program("deep/down/named"))) == {"far"}
    assert answers(way.ask(way.program("named/tool"))) == {"near"}
    assert answers(way.ask(way.program("deep/unnamed"))) == {"near"}


def test_an_expression_over_the_path(way: Way) -> None:
    """The first flow of an executable is for userspace to judge, later ones are judged in the kernel."""
    before = f"echo $$ > {way.gateway.group}/cgroup.procs"
    way.ask(way.program("any/thing"), before=before)  # a cgroup that was met
    for name, answer in (("regex/tool", "far"), ("regex/tool9", "near")):
        program = way.program(name)
        first, later = way.ask(program, before=before), way.ask(program, before=before)
        assert answers(first) == answers(later) == {answer}
        assert sockets(first[:1]) == UNKNOWN
        assert len(sockets(first[1:])) == 1
        assert sockets(first[1:]) == sockets(later) != UNKNOWN
        assert way.classes(first)[0] == mark.SNIFF
        assert (set(way.classes(later)) == {mark.DIRECT}) == (answer == "near")


def test_a_user(way: Way) -> None:
    program = way.program("any/tool")
    assert answers(way.ask(program, user=User(LISTED, 4000))) == {"far"}
    assert answers(way.ask(program, user=User(4002, 4000))) == {"near"}
    assert answers(way.ask(program, user=User(4002, LISTED))) == {"near"}


def test_a_user_by_the_other_name(way: Way) -> None:
    """The rule has the one that no look-up by number finds; both planes are asked."""
    asked = way.ask(way.program("new/tool"), user=User(pwd.getpwnam(LOGIN).pw_uid, 4000))
    assert answers(asked) == {"far"}
    assert sockets(asked[:1]) == UNKNOWN
    assert sockets(asked[1:]) != UNKNOWN


def test_a_group_primary_or_supplementary(way: Way) -> None:
    program, daemon = way.program("any/tool"), 1
    for user, answer in (
        (User(4002, MEMBER), "far"), (User(4002, 4000, (4200, MEMBER)), "far"), (User(4002, daemon), "far"),
        (User(4002, 4000, (daemon, 4200)), "far"), (User(4002, 4000, (4200,)), "near"), (User(MEMBER, 4000), "near"),
    ):  # fmt: skip
        assert answers(way.ask(program, user=user)) == {answer}, user


def test_a_cgroup_and_what_is_below(way: Way) -> None:
    """Also one that is made while the gateway runs, and one that went and came back."""
    program, listed = way.program("any/tool"), way.listed
    assert not listed.exists()

    def inside(group: Path) -> Asked:
        return way.ask(program, before=f"mkdir -p {group} && echo $$ > {group}/cgroup.procs")

    try:
        for _ in range(2):
            for group in (listed / "below" / "it", listed):
                first, later = inside(group), inside(group)
                assert answers(first) == answers(later) == {"far"}
                assert sockets(first[:1]) == UNKNOWN, "userspace is asked what it is"
                assert sockets(first[1:]) == sockets(later) != UNKNOWN
            for group in (listed / "below" / "it", listed / "below", listed):
                poll(lambda group=group: not cgroup.processes(group), "processes left", 10)
                group.rmdir()
        other = way.gateway.group / "listed.not"
        inside(other)
        asked = inside(other)
        assert answers(asked) == {"near"}
        assert set(way.classes(asked)) == {mark.DIRECT}
    finally:
        for group in (listed / "below" / "it", listed / "below", listed, way.gateway.group / "listed.not"):
            cgroup.remove(group)


def test_a_bypass_by_program(way: Way) -> None:
    """Its first flow, which the kernel cannot judge yet, goes as the others: not by the rule below."""
    before = f"echo $$ > {way.gateway.group}/cgroup.procs"
    asked = way.ask(way.program("kept/tool"), before=before)
    assert answers(asked) == {"near"}
    assert sockets(asked[:1]) == UNKNOWN
    assert set(way.classes(asked)[1:]) == {mark.DIRECT}


@pytest.mark.parametrize("kind", ["tcp", "connected", "unconnected"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_first_flow_of_each_kind(way: Way, kind: str, family: int) -> None:
    """Of an executable and a cgroup that nobody has met."""
    work = "print(json.dumps([ask(words[0], int(words[1]), words[2], port)]))"
    for name, answer in ((f"regex/{kind}{'x' * family}", "far"), (f"fresh/{kind}{family}", "near")):
        (asked,) = way.ask(way.program(name), work, kind, str(family), SITES[family])
        assert (asked[2], asked[4]) == (answer, mark.UNKNOWN)


def test_a_thread_with_another_comm(way: Way) -> None:
    """Neither hides a program nor makes it another."""
    work = """
found = []
def body():
    ctypes.CDLL(None).prctl(15, words[0].encode(), 0, 0, 0)
    assert open("/proc/thread-self/comm").read().strip() == words[0]
    found.extend(every())
thread = threading.Thread(target=body)
thread.start()
thread.join()
print(json.dumps(found))
"""
    assert answers(way.ask(way.program("path/tool"), work, "innocent")) == {"far"}
    assert answers(way.ask(way.program("deep/named"), work, "innocent")) == {"far"}
    assert answers(way.ask(way.program("other/tool"), work, "named")) == {"near"}


def test_a_renamed_argv0(way: Way) -> None:
    listed, other = way.program("path/tool"), way.program("other/tool")
    assert answers(way.ask(listed, argv0="innocent")) == {"far"}
    assert answers(way.ask(other, argv0=str(listed))) == {"near"}
    assert answers(way.ask(other, argv0="named")) == {"near"}


def test_setuid_is_the_effective_user(way: Way) -> None:
    program = way.program("set/tool")
    os.chown(program, LISTED, 4000)
    program.chmod(0o4755)
    assert answers(way.ask(program, user=User(4002, 4000))) == {"far"}
    work = "os.setreuid(4002, 4002)\n" + PLAIN
    assert answers(way.ask(program, work, user=User(4002, 4000))) == {"near"}, "it gave them up"
    os.chown(program, 4003, 4000)
    program.chmod(0o4755)
    assert answers(way.ask(program, user=User(LISTED, 4000))) == {"near"}


def test_a_package_upgrade(way: Way) -> None:
    """The old program runs on, the new one stands in its place: both have the path."""
    for name in ("path/tool", "regex/tool"):
        listed, new = way.program(name), way.program("upgrade/new")
        work = f"os.rename(words[0], words[1])\n{PLAIN}"
        assert answers(way.ask(listed, work, str(new), str(listed))) == {"far"}
        assert not new.exists()
        assert answers(way.ask(listed)) == {"far"}


def test_an_executable_that_is_renamed(way: Way) -> None:
    """It has the name that it has now, also while it runs."""
    for name in ("path/tool", "regex/tool"):
        program, other = way.program(name), way.bin / "renamed"
        work = "first = every()\nos.rename(words[0], words[1])\nprint(json.dumps([first, every()]))"
        before, after = way.ask(program, work, str(program), str(other))
        assert {one[2] for one in before} == {"far"}
        assert {one[2] for one in after} == {"near"}
        assert answers(way.ask(other)) == {"near"}


def test_a_resolver_on_loopback(way: Way) -> None:
    """What a program asks on loopback stays there whatever the rules say; what a resolver asks then is its own."""
    program, other, resolver = way.program("path/tool"), way.program("other/tool"), way.program("resolver")
    with closing(Server(way.gateway, {NEAR: "loopback"}, LOOPBACK)):
        assert answers(way.ask(program, sites=LOOPBACK)) == {"loopback"}
    serve = """
near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
near.bind(("127.0.0.1", port))
while True:
    _, client = near.recvfrom(100)
    near.sendto(ask("unconnected", 4, site4, 7001)[2].encode(), client)
"""
    running = way.gateway.popen(way.arguments(resolver, SITES, 5353, serve))
    try:
        way.gateway.wait_listening([("udp", 5353)], running)
        work = 'print(json.dumps([ask("unconnected", 4, "127.0.0.1", 5353)]))'
        assert [one[2] for one in way.ask(other, work)] == ["far"]
    finally:
        os.kill(running.pid, signal.SIGTERM)
        running.wait(10)


def test_owners_of_flows_that_run(way: Way) -> None:
    """``gateway flows`` names the program of a flow in either plane."""
    for name, plane in (("path/tool", "userspace"), ("other/tool", "kernel")):
        program = way.program(name)
        hold = """
held = []
for family, site in ((socket.AF_INET, site4), (socket.AF_INET6, site6)):
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.connect((site, port))
    held.append(sock)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.sendto(b"?", (site, port))
    sock.recvfrom(100)
    held.append(sock)
open(words[0], "w").write(" ".join(str(sock.getsockname()[1]) for sock in held))
sys.stdin.read()
threading.Event().wait()
"""
        told = way.lab.folder / f"{plane}.ports"
        enter = f'echo $$ > {way.gateway.group}/cgroup.procs && exec "$0" "$@"'
        command = way.arguments(program, SITES, NEAR, hold, str(told))
        way.ask(program, before=f"echo $$ > {way.gateway.group}/cgroup.procs")
        running = way.gateway.popen(["bash", "-c", enter, *command], user=None)
        try:
            poll(lambda told=told: told.exists() and told.read_text(), running.told(), 20)
            ports = told.read_text().split()
            done = way.command("flows", "--json", "--filter", str(program))
            found = {flow["source"].rpartition(":")[2]: flow for flow in done.json()["flows"]}
            # Those of its first run, which have ended, may be there too.
            assert found.keys() >= set(ports), done.out
            for port in ports:
                flow = found[port]
                assert (flow["plane"], flow["process"], flow["user"]) == (plane, str(program), "root")
                assert flow["pid"] == running.pid
            table = way.command("flows").out
            assert f"tool[{running.pid}] root" in table
        finally:
            os.kill(running.pid, signal.SIGKILL)
            running.wait(10)


def test_the_documented_rules(way: Way) -> None:
    """Of docs/processes.md, as the gateway that runs them explains them, and as a program meets them."""
    (text,) = re.findall(r"```jsonc\n(.*?)```", (ROOT / "docs/processes.md").read_text(), re.S)
    before = way.path.read_text()
    value = json.loads(strip(text))
    way.path.write_text(json.dumps(value | {"gateway": json.loads(before)["gateway"]}))
    try:
        way.reload()
        for words, told in (
            (["--cgroup", "/system.slice/backup.service/worker", "--user", "news"], ("kernel", "direct")),
            (["--cgroup", "/system.slice/backup.service.d"], ("kernel", "direct")),
            (["--process", "/opt/games/bin/updater"], ("kernel", "direct")),
            (["--process", "/opt/games/bin/chess"], ("userspace", "user")),
            (["--process", "/opt/tools/bin/chess"], ("kernel", "direct")),
            (["--user", "mail"], ("kernel", "reject")),
        ):
            found = way.command("explain", SITES[4], "--json", *words).json()
            assert (found["where"], found["verdict"]) == told, words
        enter = f"echo $$ > {way.gateway.group}/cgroup.procs"
        program, work = way.program("any/tool"), 'print(json.dumps([ask("tcp", 4, site4, port)]))'
        asked = way.ask(program, work, before=enter)
        refused = 'try:\n ask("tcp", 4, site4, port)\nexcept ConnectionError:\n print("[[0, 0]]")'
        news = User(pwd.getpwnam("news").pw_uid, 4000)
        assert way.ask(program, refused, user=news) == [(0, 0)]
        assert [one[2] for one in asked] == ["near"]
    finally:
        way.path.write_text(before)
        way.reload()


def test_explain_says_the_same(way: Way) -> None:
    place = f"/{way.listed.relative_to(cgroup.mount_point())}/below"
    for words, outbound in (
        (["--process", str(way.bin / "regex/tool")], "far"), (["--cgroup", place], "far"),
        (["--cgroup", f"{place}/../x"], "far"), (["--cgroup", "/elsewhere"], "direct"), (["--user", LOGIN], "far"),
        (["--process", "/usr/bin/true"], "direct"),
    ):  # fmt: skip
        found = way.command("explain", SITES[4], "--port", str(NEAR), "--json", *words).json()
        assert (found["outbound"], found["where"]) == (outbound, "userspace" if outbound == "far" else "kernel")
