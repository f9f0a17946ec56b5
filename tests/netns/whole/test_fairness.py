"""Fifty devices with flows in userspace, one of which opens as many as it can: what the others notice."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from gateway.lab.client.dials import Target
from gateway.lab.dials import Dials
from gateway.lab.process import Process
from gateway.service.control import ask

from .conftest import PROXIED, ROOT, USERSPACE, Whole, until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("fairness")]
DEVICES = 50
_most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
FLOWS = 200 if _most == resource.RLIM_INFINITY or _most > 32768 else (_most // 2 - 500) // 2 // DEVICES
"""Of each device; fewer where this host does not let a process hold so many."""
ROUNDS = 7
SECONDS = 3.0
PACE = 0.02
MOST = 1.5
"""How much slower a new flow of a quiet device may be in the median, against the same without the abuse."""
FIRST = ip_address("192.168.7.100")
ABUSER = str(FIRST)
QUIET = [str(FIRST + number) for number in range(1, DEVICES)]
PORT = 9
ABUSED = range(100, 140)
"""Ports of the server that the abuser dials: one would run out of ports to be dialled from."""
SERVER = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(self.transport.get_extra_info("peername")[0].encode() + b" ")
async def main():
    loop = asyncio.get_running_loop()
    for port in sys.argv[2:]:
        await loop.create_server(Echo, sys.argv[1], int(port), backlog=4096)
    await asyncio.Event().wait()
asyncio.run(main())
"""
HOLD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
address, port, count, *sources = sys.argv[1:]
held = []
for number in range(int(count)):
    for source in sources:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_IP, 24, 1)
        sock.bind((source, 0))
        sock.settimeout(20)
        sock.connect((address, int(port)))
        sock.send(b"?")
        assert sock.recv(100)
        held.append(sock)
print("held", flush=True)
time.sleep(3600)
"""
ABUSE = """
import os, resource, selectors, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
# The abuser is a machine of its own: here it takes less of the processors than the gateway does.
os.nice(10)
address, source, *ports = sys.argv[1:]
poll, begun, trying, most = selectors.DefaultSelector(), 0, 0, 500
while True:
    while trying < most:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_IP, 24, 1)
        sock.bind((source, 0))
        sock.connect_ex((address, int(ports[begun % len(ports)])))
        poll.register(sock, selectors.EVENT_WRITE)
        trying += 1
        begun += 1
        if begun % 500 == 0:
            print(begun, flush=True)
    for key, events in poll.select(1):
        sock = key.fileobj
        if key.events == selectors.EVENT_WRITE:
            trying -= 1
            poll.modify(sock, selectors.EVENT_READ)
            continue
        poll.unregister(sock)
        sock.close()
"""
"""It never says a word, so that what it was given stays open; what is refused it tries again, 500 at a time."""


@pytest.fixture
def crowd(whole: Whole) -> Iterator[Whole]:
    """A house of devices whose flows stand."""
    script = "; ".join(f"ip addr add {device}/24 dev eth0" for device in (ABUSER, *QUIET))
    whole.client.run(["sh", "-c", script], check=True)
    server = whole.server.popen([sys.executable, "-c", SERVER, PROXIED[0], str(PORT), *map(str, ABUSED)])
    whole.server.wait_listening([("tcp", port) for port in (PORT, *ABUSED)], server)
    holder = None
    try:
        whole.start("open")
        holder = whole.client.popen([sys.executable, "-c", HOLD, PROXIED[0], str(PORT), str(FLOWS), *QUIET], cwd=ROOT)
        assert until(lambda: "held" in holder.out.read_text() or not holder.running, 120)
        assert holder.running, holder.told()
        print(f"{DEVICES} devices, {FLOWS} flows each")
        yield whole
    finally:
        for process in (holder, server):
            if process is not None:
                process.kill()
        whole.client.run(["sh", "-c", script.replace(" addr add ", " addr del ")], check=True)


@contextmanager
def abuse(whole: Whole) -> Iterator[Process]:
    held = ask(whole.folder, {"command": "status"})["flows"]
    process = whole.client.popen([sys.executable, "-c", ABUSE, PROXIED[0], ABUSER, *map(str, ABUSED)])
    try:
        assert until(lambda: put_off(whole), 60), process.told()
        yield process
    finally:
        process.kill()
        assert until(lambda: not put_off(whole) and ask(whole.folder, {"command": "status"})["flows"] < held + 100, 60)


def put_off(whole: Whole) -> bool:
    return ABUSER in whole.gateway.run(["nft", "list", "set", "inet", "gateway", "full4"], check=True).out


def measure(whole: Whole) -> list[float]:
    """Seconds from a quiet device's SYN to the first byte of the far end."""
    targets = [Target(device, "tcp", PROXIED[0], PORT, device) for device in QUIET]
    with Dials(whole.client, targets, PACE, patience=5) as dials:
        time.sleep(SECONDS)
    assert {made.said for made in dials.made} == {USERSPACE[0]}, {made.said for made in dials.made}
    return [made.took for made in dials.made]


def test_one_device_that_takes_all_it_can_slows_nobody(crowd: Whole) -> None:
    ratios, every = [], {"quiet": list[float](), "abused": list[float]()}
    for _ in range(ROUNDS):
        time.sleep(2)  # what the last round left ends by and by: else the quiet would be measured too slow
        quiet = measure(crowd)
        with abuse(crowd) as process:
            abused = measure(crowd)
            assert process.running
            assert put_off(crowd)
        every["quiet"] += quiet
        every["abused"] += abused
        ratios.append(statistics.median(abused) / statistics.median(quiet))
        print(f"median {statistics.median(quiet) * 1000:.2f} -> "
              f"{statistics.median(abused) * 1000:.2f} ms, {ratios[-1]:.2f} times")  # fmt: skip
    for name, took in every.items():
        cuts = statistics.quantiles(took, n=100)
        print(f"{name}: median {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.1f} ms of {len(took)}")
    assert statistics.median(ratios) <= MOST, ratios
