"""The demo's checks of a way back: a trial that locks out is undone, and a pause shows what goes without the rules."""

from __future__ import annotations

import json
import socket
import sys

from gateway.lab.forecast import CheckError, expect
from gateway.lab.netns import LabError
from gateway.lab.observe import answering, kernel_only, proxied, visit
from gateway.lab.snapshot import differences, snapshot
from gateway.lab.stage import Stage
from gateway.trial import UNCONFIRMED

SSH = 22
SECONDS = 8
"""Of the trial: enough to see what it has changed."""


def trial_rolls_back(stage: Stage) -> str:
    """On inner, the router of the guest, somebody in the LAN who manages it starts a gateway on trial, which takes the
    LAN for its WAN and closes it. Nobody confirms: he comes in again, and inner is as it was."""
    if stage.gateway is None:
        raise CheckError("no gateway runs")
    inner, host = stage.home.inner, stage.lab.host("inner")
    expect(answering(stage, "lan1", inner.ipv4, [SSH]), "lan1 does not reach inner before: this shows nothing")
    path = stage.lab.folder / "trial.json"
    path.write_text(json.dumps(_locking(stage)))
    instance, before = f"{stage.instance}-trial", snapshot(host)
    process = stage.launch("inner", [path], instance, "--trial", str(SECONDS))
    changed = [name for name, text in snapshot(host).items() if text != before[name]]
    expect({"nft", "sysctls", "rules"} <= set(changed), f"the trial has changed {changed} alone")
    expect(not answering(stage, "lan1", inner.ipv4, [SSH]), "lan1 is not locked out: this shows nothing")
    if "confirmed" in stage.sabotages:
        host.run([sys.executable, "-m", "gateway", "confirm", "--here", "--instance", instance])
    try:
        result = process.wait(SECONDS + 10)
    except LabError:
        host.run([sys.executable, "-m", "gateway", "down", "--instance", instance])
        raise CheckError("the trial was not undone") from None
    expect(result.code == UNCONFIRMED, f"exit {result.code}: {result.err[-300:]}")
    expect(answering(stage, "lan1", inner.ipv4, [SSH]), "lan1 is locked out still")
    left = differences(before, snapshot(host))
    expect(not left, f"not as before: {'; '.join(left[:6])}")
    return f"lan1 was locked out of inner; after {result.seconds:.0f} s {', '.join(changed)} are as before"


def _locking(stage: Stage) -> dict[str, object]:
    drawn = stage.home
    static = {
        "address": [f"{drawn.inner.ipv4}/24", f"{drawn.inner.ipv6}/64"],
        "gateway": [drawn.router_lan4, drawn.router_lan6],
    }
    lan = {"interface": "guests", "address": [f"{drawn.inner_guest4}/24", f"{drawn.inner_guest6}/64"]}
    group = str(stage.lab.host("inner").group)
    uplink = {"interface": "eth0", "static": static}
    return {"gateway": {"uplinks": [uplink], "lans": [lan], "kernel": {"cgroup": group}}}


def pause(stage: Stage) -> str:
    """One device is paused: what it begins is the kernel's and direct, what it had begun goes on through the proxy, and
    other devices are as ever. Then all of it is as before."""
    site, echo, lan1 = stage.home.sites[2], stage.home.sites[3], stage.home.lan1.ipv4
    proxied(stage, site, visit(stage, "lan1", site, site.names[0]))
    with stage.lab.host("lan1").socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.connect((echo.ipv4, 7))
        _goes_on(stage, sock)
        if "not-paused" not in stage.sabotages:
            done = stage.command("pause", "--device", lan1, "--for", "10m")
            expect(done.ok, done.err.strip())
        try:
            kernel_only(stage, lan1, site.ipv4, visit(stage, "lan1", site, site.names[0]))
            proxied(stage, site, visit(stage, "lan2", site, site.names[0]))
            _goes_on(stage, sock)
        finally:
            done = stage.command("resume", "--device", lan1)
        expect(done.ok, done.err.strip())
        proxied(stage, site, visit(stage, "lan1", site, site.names[0]))
        _goes_on(stage, sock)
    return f"{site.host} saw {stage.wan4} from lan1 while it was paused, the proxy from lan2, and the proxy again after"


def _goes_on(stage: Stage, sock: socket.socket) -> None:
    """The same UDP flow, through the proxy. Raises CheckError, OSError."""
    sock.send(b"still")
    seen = json.loads(sock.recv(65535))["client"][0]
    expect(stage.way(seen) == "proxy", f"a flow that was proxied comes from {seen}")
