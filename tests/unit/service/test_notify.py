"""What a service manager hears: against a socket of its kind, by a path and by an abstract name."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.kernel import watcher
from gateway.service import notify
from gateway.service.notify import Notifier


class Ear:
    """The other end of a socket at ``name``; ``{pid}`` in what is put into the environment is ours."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.sock.settimeout(5)
        self.environment = {"NOTIFY_SOCKET": name, "HOME": "/"}

    def watchdog(self, seconds: float, process: int) -> None:
        self.environment |= {"WATCHDOG_USEC": str(int(seconds * 1e6)), "WATCHDOG_PID": str(process)}

    def hear(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.sock.recv(4096).decode().split("\n"))

    def silent(self) -> bool:
        self.sock.setblocking(False)
        try:
            return not self.sock.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(5)


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@gateway-test-{os.getpid()}"
    found = Ear(name)
    with found.sock:
        yield found


def test_the_words_of_a_life(ear: Ear) -> None:
    async def main() -> None:
        notifier = Notifier(ear.environment)
        said = ["starts"]
        notifier.start(lambda: said[0], 3)
        assert ear.hear() == {"STATUS": "starts"}
        said[0] = "routes;\n uplink wan0"
        notifier.ready()
        assert ear.hear() == {"READY": "1", "STATUS": "routes; uplink wan0"}, "one line"
        notifier.reloading()
        heard = ear.hear()
        assert heard.pop("RELOADING") == "1"
        assert 0 < int(heard.pop("MONOTONIC_USEC")) <= asyncio.get_running_loop().time() * 1e6 + 1e6
        notifier.ready()
        assert ear.hear()["READY"] == "1"
        notifier.stopping()
        assert ear.hear()["STOPPING"] == "1"
        notifier.stopping()
        notifier.ready()
        assert ear.silent(), "nothing after the last word"

    asyncio.run(main())


def test_a_status_is_told_when_it_changes(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "BEAT", 0.01)

    async def main() -> None:
        said = ["one"]
        notifier = Notifier(ear.environment)
        notifier.start(lambda: said[0], 3)
        assert ear.hear() == {"STATUS": "one"}
        await asyncio.sleep(0.1)
        assert ear.silent(), "nothing has changed, and there is no watchdog"
        said[0] = "x" * 9999
        await asyncio.sleep(0.1)
        assert ear.hear() == {"STATUS": "x" * notify.LONGEST}
        assert ear.silent()
        notifier.close()

    asyncio.run(main())


def test_the_watchdog_is_fed_by_the_loop(ear: Ear) -> None:
    async def main() -> None:
        ear.watchdog(0.3, os.getpid())
        notifier = Notifier(ear.environment)
        notifier.start(lambda: "same", 0.1)
        first = ear.hear()
        assert first == {"WATCHDOG": "1", "STATUS": "same"}, "a heartbeat shorter than the watchdog changes nothing"
        await asyncio.sleep(0.35)
        for _ in range(2):
            assert ear.hear() == {"WATCHDOG": "1"}
        notifier.close()

    asyncio.run(main())


def test_the_watchdog_waits_longer_than_the_heartbeat(ear: Ear) -> None:
    async def main() -> None:
        ear.watchdog(30, os.getpid())
        notifier = Notifier(ear.environment)
        notifier.start(lambda: "", 3)
        ear.hear()
        notifier.agree(60)
        assert ear.hear() == {"WATCHDOG_USEC": "180000000", "WATCHDOG": "1"}
        with notifier.patience():
            assert ear.silent(), "it is longer already"
        notifier.agree(3)
        assert ear.hear()["WATCHDOG_USEC"] == "30000000"
        with notifier.patience(), notifier.patience():
            assert int(ear.hear()["WATCHDOG_USEC"]) > watcher.LONG * 1e6
        assert ear.hear()["WATCHDOG_USEC"] == "30000000"
        notifier.agree(0)
        assert ear.hear()["WATCHDOG_USEC"] == "0", "no heartbeat, no watchdog"
        with notifier.patience():
            assert ear.silent()
        notifier.close()

    asyncio.run(main())


def test_the_watchdog_of_another_process_is_not_ours(ear: Ear) -> None:
    async def main() -> None:
        ear.watchdog(0.1, os.getpid() + 1)
        notifier = Notifier(ear.environment)
        notifier.start(lambda: "", 3)
        assert ear.hear() == {"STATUS": ""}
        await asyncio.sleep(0.15)
        assert ear.silent()
        notifier.close()

    asyncio.run(main())


def test_nobody_speaks_for_us(ear: Ear) -> None:
    ear.watchdog(1, os.getpid())
    Notifier(ear.environment).close()
    assert ear.environment == {"HOME": "/"}


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@nobody-listens-here", "vsock:2:1", "relative"])
def test_without_anybody_who_listens(name: str) -> None:
    async def main() -> None:
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
        notifier.start(lambda: "", 3)
        notifier.ready()
        notifier.reloading()
        notifier.stopping()

    asyncio.run(main())
