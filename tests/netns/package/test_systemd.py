"""The package under systemd: installed, run, hung, reloaded, upgraded below flows, killed and removed.

In a container, which has the lab's kernel and no boot. With both of its own, in a virtual machine: test_guest.py.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.lab.lab import Lab
from gateway.lab.snapshot import differences, snapshot
from tests.debian import INSTALL, bare, field, ready
from tests.netns.whole.conftest import until
from tests.netns.whole.test_nothing_left import settled

from .container import PACKAGES, Container
from .service import Service, hung, installed, purged, reloaded, stopped, upgraded

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("bootstrap")]


@pytest.fixture(scope="module")
def container(lab: Lab, package: Path, rebuilt: Path) -> Iterator[Container]:
    """With all that the package depends on: it reaches no mirror."""
    folder = Path(tempfile.mkdtemp(prefix="gw"))
    try:
        tree = bare(folder)
        for archive in (package, rebuilt):
            shutil.copy(archive, tree / "root")
        ready(tree, "apt-get", "-qq", "update")
        ready(tree, *INSTALL, "install", *PACKAGES)
        ready(tree, *INSTALL, "satisfy", field(package, "Depends"))
        made = Container(lab.host("gateway"), tree, f"/root/{package.name}", f"/root/{rebuilt.name}")
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder)


def test_a_life_under_systemd(lab: Lab, container: Container) -> None:
    service = Service(lab, container)
    before = settled(service.whole)
    for phase in (installed, reloaded, _allowed, hung, _killed, stopped, upgraded, _left_dead, purged):
        phase(service)
    left: list[str] = []

    def clean() -> bool:
        left[:] = differences(before, snapshot(service.whole.gateway))
        return not left

    assert until(clean, 10), left[:8]


def _allowed(service: Service) -> None:
    status = json.loads(service.machine.ready("gateway status --json"))
    assert status["steering"]
    assert status["refused"] == {}, "the sandbox lets it do all that it wants"
    assert service.show()["StatusText"].startswith("routes; uplink wan0")


def _killed(service: Service) -> None:
    """Whatever killed it: systemd starts it again."""
    before = service.show()
    service.machine.ready(f"kill -KILL {before['MainPID']}")
    assert until(service.plain, 5), "until then a plain router"
    assert until(lambda: service.show()["MainPID"] not in ("0", before["MainPID"]) and service.active(), 60)
    service.must_route()
    service.step("killed: systemd started it again")


def _left_dead(service: Service) -> None:
    """Removed as one that is not running any more, which is the harder case."""
    machine = service.machine
    machine.ready("mkdir -p /run/systemd/system/gateway.service.d")
    machine.write("/run/systemd/system/gateway.service.d/dead.conf", "[Service]\nRestart=no")
    machine.ready("systemctl daemon-reload")
    machine.ready(f"kill -KILL {service.show()['MainPID']}")
    assert until(lambda: service.show()["ActiveState"] == "failed", 20), service.show()
    assert "gateway_base" in service.whole.tables()
    machine.ready("rm -r /run/systemd/system/gateway.service.d && systemctl daemon-reload")
