"""Network namespaces of this folder's tests: a router and an ISP on a veth pair, made and removed by name.

``inside(name, main)`` runs an async function on a thread that has entered the namespace: sockets, /proc/sys/net and
child processes of that thread are the namespace's.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from tests.peers import path

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def sh(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def inside(name: str, main: Callable[[], Awaitable[T]], timeout: float = 120) -> T:
    """The result of ``main()``, or what it raised."""
    result: list[Any] = []

    async def bounded() -> T:
        async with asyncio.timeout(timeout):
            return await main()

    def body() -> None:
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            if libc.setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # what the gateway runs on
                result.append(runner.run(bounded()))
        except BaseException as error:
            result.append(error)
        finally:
            os.close(fd)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


async def until(what: Callable[[], Any], seconds: float = 30, step: float = 0.05) -> Any:
    """The first true value of ``what()``."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        await asyncio.sleep(step)


class Net:
    """``router`` has ``wan`` (down, no address), ``isp`` has ``isp0`` with 192.0.2.1/24."""

    def __init__(self, tmp: Path) -> None:
        tag = secrets.token_hex(3)
        self.router, self.isp = f"gwu-r-{tag}", f"gwu-i-{tag}"
        self.tmp = tmp
        self.children: list[subprocess.Popen[bytes]] = []
        for name in (self.router, self.isp):
            sh("ip", "netns", "add", name)
            self.ip(name, "link", "set", "lo", "up")
        self.plug()

    def plug(self) -> None:
        """Make the cable; also again after ``unplug``."""
        self.ip(
            self.router,
            "link",
            "add",
            "wan",
            "address",
            "02:00:00:00:00:02",
            "type",
            "veth",
            "peer",
            "isp0",
            "netns",
            self.isp,
        )
        self.ip(self.isp, "addr", "add", "192.0.2.1/24", "dev", "isp0")
        self.ip(self.isp, "link", "set", "isp0", "up")

    def unplug(self) -> None:
        self.ip(self.router, "link", "del", "wan")

    def ip(self, name: str, *words: str, check: bool = True) -> str:
        return sh("ip", "-n", name, *words, check=check)

    def start(self, name: str, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        log = (self.tmp / f"{Path(command[0]).name}-{len(self.children)}.log").open("wb")
        child = subprocess.Popen(
            ["ip", "netns", "exec", name, *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            env=os.environ | (env or {}), start_new_session=True,
        )  # fmt: skip
        self.children.append(child)
        return child

    def stop(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait(10)

    def close(self) -> None:
        for child in self.children:
            self.stop(child)
        for name in (self.router, self.isp):
            for pid in sh("ip", "netns", "pids", name, check=False).split():
                # Only what this namespace, ours alone, still runs (a detached dnsmasq).
                if int(pid) != os.getpid():
                    os.kill(int(pid), 9)
            sh("ip", "netns", "del", name, check=False)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    if os.geteuid():
        pytest.skip("needs root")
    made = Net(tmp_path)
    yield made
    made.close()


def peer(name: str) -> str:
    """The executable of a foreign program, installed on first use."""
    return str(path(name))
