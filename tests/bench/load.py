"""The programs that make the load, and how their reports are read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from gateway.lab.host import Host
from gateway.lab.netns import LabError
from tests import peers
from tests.bench.measure import RunFailed, Sample, say
from tests.bench.rig import BULK, HTTP


def told(host: Host, command: Sequence[str], seconds: float) -> str:
    try:
        result = host.run(command, timeout=seconds + 15)
    except LabError as error:
        raise RunFailed(str(error)) from None
    if not result.ok:
        raise RunFailed(f"{' '.join(command)}: exit {result.code}: {result.out[-300:]} {result.err[-300:]}")
    return result.out


def iperf3(target: str, seconds: int, *, down: bool, streams: int = 2, port: int = BULK) -> list[str]:
    """Bulk over TCP; ``down``: the server sends."""
    command = [str(peers.path("iperf3")), "-c", target, "-p", str(port), "-t", str(seconds), "-P", str(streams), "-J"]
    command += ["--connect-timeout", "5000"]
    return [*command, *(["-R"] if down else [])]


def bulk(host: Host, command: Sequence[str], seconds: int) -> Sample:
    """``Mbit/s`` and ``bytes`` as they were received."""
    report = json.loads(told(host, command, seconds))
    if "error" in report:
        raise RunFailed(report["error"])
    received = report["end"]["sum_received"]
    return {"Mbit/s": received["bits_per_second"] / 1e6, "bytes": received["bytes"]}


def wrk(target: str, seconds: int, connections: int = 64) -> list[str]:
    """A new TCP connection for every request."""
    threads = min(2, connections)
    command = [str(peers.path("wrk")), "-t", str(threads), "-c", str(connections), "-d", str(seconds), "--latency"]
    return [*command, "-H", "Connection: close", f"http://{target}:{HTTP}/"]


UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def connections(host: Host, command: Sequence[str], seconds: int) -> Sample:
    """``conn/s``, and ``p50`` of a whole request in milliseconds."""
    text = told(host, command, seconds)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    half = re.search(r"50%\s+([\d.]+)(us|ms|s|m)\b", text)
    if rate is None or half is None or not float(rate[1]):
        raise RunFailed(text)
    if errors := re.search(r"Socket errors: (.*)|Non-2xx.*", text):
        say(f"  wrk: {errors[0]}")
    return {"conn/s": float(rate[1]), "p50": float(half[1]) * UNITS[half[2]]}


def dnsperf(target: str, names: str, seconds: int, port: int, mode: str = "udp") -> list[str]:
    """Eight clients, 100 queries under way."""
    command = [str(peers.path("dnsperf")), "-s", target, "-p", str(port), "-d", names, "-l", str(seconds), "-m", mode]
    return [*command, "-c", "8", "-q", "100", "-t", "2"]


def queries(host: Host, command: Sequence[str], seconds: int) -> Sample:
    """``queries`` a second, ``lost`` ones, and the average ``latency`` in milliseconds."""
    text = told(host, command, seconds)
    rate = re.search(r"Queries per second:\s+([\d.]+)", text)
    lost = re.search(r"Queries lost:\s+(\d+)", text)
    wait = re.search(r"Average Latency \(s\):\s+([\d.]+)", text)
    codes = re.search(r"Response codes:\s+(.*)", text)
    if rate is None or lost is None or wait is None or codes is None or not codes[1].startswith("NOERROR"):
        raise RunFailed(text)
    done = re.search(r"Queries completed:\s+(\d+)", text)
    assert done is not None
    return {"queries": float(rate[1]), "lost": int(lost[1]), "latency": float(wait[1]) * 1e3, "done": int(done[1])}
