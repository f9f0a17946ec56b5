"""Which connection a process came by, read from a /proc made for it."""

from __future__ import annotations

import os
import shutil
from ipaddress import ip_address
from pathlib import Path

from gateway.kernel.login import Sessions, login, started

LISTENER, SERVED, SHELL, CALLER = 100, 200, 201, 202
PEER, HERE = "0B00A8C0", "0100A8C0"
"""192.168.0.11 and 192.168.0.1, as /proc/net/tcp has them."""
HERTZ = os.sysconf("SC_CLK_TCK")


class Proc:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[str] = []

    def process(self, pid: int, parent: int, seconds: float, *sockets: int, name: str = "sshd") -> None:
        folder = self.path / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "net").mkdir()
        fields = ["S", str(parent), *["0"] * 17, str(int(seconds * HERTZ))]
        (folder / "stat").write_text(f"{pid} ({name}) {' '.join(fields)} 0 0\n")
        for number, inode in enumerate(sockets):
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")

    def socket(self, inode: int, local: str, peer: str, state: str) -> None:
        self.rows.append(f"  0: {local} {peer} {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1 0 20")

    def written(self) -> Path:
        for folder in self.path.iterdir():
            (folder / "net/tcp").write_text("\n".join(["head", *self.rows]) + "\n")
        return self.path


def house(path: Path, *, peer: str = PEER) -> Proc:
    """sshd's listener, a connection begun after 50 s, its shell, and who asks."""
    proc = Proc(path)
    proc.process(LISTENER, 1, 5, 1)
    proc.process(SERVED, LISTENER, 50, 2)
    proc.process(SHELL, SERVED, 51, name="ba) sh")
    proc.process(CALLER, SHELL, 60)
    proc.socket(1, "00000000:0016", "00000000:0000", "0A")
    proc.socket(2, f"{HERE}:0016", f"{peer}:C000", "01")
    return proc


def test_the_connection_and_when_it_began(tmp_path: Path) -> None:
    found = login(CALLER, house(tmp_path).written())
    assert found == (SERVED, 50.0, ip_address("192.168.0.11"))


def test_sudo_and_sessions_of_setsid_change_nothing(tmp_path: Path) -> None:
    proc = house(tmp_path)
    proc.process(300, SHELL, 90, name="sudo")
    proc.process(301, 300, 91, name="gateway")
    assert login(301, proc.written()) == login(CALLER, tmp_path)


def test_sessions_that_share_a_connection_are_as_old_as_that(tmp_path: Path) -> None:
    """ControlMaster: a new session, the old connection; the process between has the socket too."""
    proc = house(tmp_path)
    proc.process(210, SERVED, 99, 2)
    proc.process(211, 210, 99, name="bash")
    found = login(211, proc.written())
    assert found is not None
    assert found.started == 50.0


def test_a_multiplexer_belongs_to_no_connection(tmp_path: Path) -> None:
    """Its server was begun from a shell, and is nobody's child; who attaches to it has no part in what it begets."""
    proc = house(tmp_path)
    proc.process(400, 1, 99, name="tmux: server")
    proc.process(401, 400, 99, name="bash")
    proc.process(402, 401, 99, name="gateway")
    proc.process(403, SHELL, 99, name="tmux: client")
    assert login(402, proc.written()) is None


def test_a_console_and_a_process_that_is_gone(tmp_path: Path) -> None:
    proc = house(tmp_path)
    proc.process(500, 1, 20, name="login")
    proc.process(501, 500, 99, name="bash")
    assert login(501, proc.written()) is None
    assert login(999, tmp_path) is None
    assert login(0, tmp_path) is None
    assert started(999, tmp_path) == 0.0


def test_a_connection_of_this_host_to_itself_proves_nothing(tmp_path: Path) -> None:
    for number, peer in enumerate(("0100007F", HERE)):
        assert login(CALLER, house(tmp_path / str(number), peer=peer).written()) is None


def test_a_connection_that_this_host_has_made_is_none(tmp_path: Path) -> None:
    """A terminal program that talks to somebody: its local port is nobody's."""
    proc = Proc(tmp_path)
    proc.process(600, 1, 99, 7, name="terminal")
    proc.process(601, 600, 99, name="gateway")
    proc.socket(7, f"{HERE}:C123", f"{PEER}:01BB", "01")
    assert login(601, proc.written()) is None


def test_ipv6_and_mapped_addresses(tmp_path: Path) -> None:
    proc = house(tmp_path)
    proc.process(SERVED + 500, LISTENER, 70, 3)
    path = proc.written()
    rows = {
        "2001:db8::2": "B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:C001",
        "192.168.0.12": "0000000000000000FFFF00000100A8C0:0016 0000000000000000FFFF00000C00A8C0:C002",
    }
    for peer, ends in rows.items():
        for folder in path.iterdir():
            (folder / "net/tcp6").write_text(f"head\n  0: {ends} 01 0 0 0 0 0 3 1\n")
        found = login(SERVED + 500, path)
        assert found is not None
        assert found.peer == ip_address(peer)


def test_peers_of_all_sessions(tmp_path: Path) -> None:
    proc = house(tmp_path)
    proc.process(700, LISTENER, 80, 9)
    proc.process(701, LISTENER, 80, 10)
    proc.process(702, 1, 80, 11, name="nginx")
    proc.socket(9, f"{HERE}:0016", "0C00A8C0:C000", "01")
    proc.socket(10, f"{HERE}:0016", "0D00A8C0:C000", "01")
    proc.socket(11, f"{HERE}:0050", "0E00A8C0:C000", "01")
    proc.socket(12, f"{HERE}:0050", "00000000:0000", "0A")
    path = proc.written()
    (path / "self").symlink_to(str(LISTENER))
    for folder in path.iterdir():
        if folder.name != "self":
            (folder / "comm").write_text("nginx\n" if folder.name == "702" else "sshd\n")
            (folder / "ns").mkdir()
            home = path / "net0"
            home.touch()
            (folder / "ns/net").symlink_to(path / "net1" if folder.name == "701" else home)
    (path / "net1").touch()
    sessions = Sessions(path)
    assert sessions.look() == {ip_address("192.168.0.11"), ip_address("192.168.0.12")}
    shutil.rmtree(path / "700")
    assert sessions.look() == {ip_address("192.168.0.11")}
