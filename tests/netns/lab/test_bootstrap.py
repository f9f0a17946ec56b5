"""``./gw`` on a bare Debian: it installs what it needs, and no service is ever enabled, started or asked for.

The tree is debootstrap's, without ``policy-rc.d`` (which would hide a start), with ``systemctl``, ``invoke-rc.d`` and
their like replaced by stubs that write down each call. The host's own packages and services are out of reach: the
tree is a chroot in a private mount namespace.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.lab import peer
from tests.debian import CHECKOUT, bare, inside

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("bootstrap")]
CALLS = "var/log/service-calls"
STUBS = ("usr/bin/systemctl", "usr/sbin/invoke-rc.d", "usr/bin/deb-systemd-invoke", "usr/sbin/service")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    made = bare(tmp_path)
    assert not (made / "usr/sbin/policy-rc.d").exists()
    for stub in STUBS:
        (made / stub).unlink(missing_ok=True)
        peer.script(made / stub, f'echo "$0 $*" >>/{CALLS}\n')
    (made / CALLS).touch()
    leave = shutil.ignore_patterns(".git", "__pycache__", "build", "*.o", ".*_cache", ".hypothesis", ".venv")
    shutil.copytree(CHECKOUT, made / "opt/gateway", ignore=leave)
    yield made
    shutil.rmtree(made)


def enabled(tree: Path) -> set[str]:
    """Links by which a service would be started at boot: systemd's and those of the run levels."""
    folders = [tree / "etc/systemd", *tree.glob("etc/rc?.d")]
    return {str(file.relative_to(tree)) for folder in folders for file in folder.rglob("*") if file.is_symlink()}


def test_bootstrap_touches_no_service_and_is_quick_the_second_time(tree: Path) -> None:
    before = enabled(tree)
    first = inside(tree, "/opt/gateway/gw", "version")
    assert first.returncode == 0, first.stderr[-4000:]
    assert first.stdout.startswith("gateway version")
    assert (tree / CALLS).read_text() == ""
    assert enabled(tree) == before
    sources = {file.name.removesuffix(".c") for file in (CHECKOUT / "bpf").glob("*.bpf.c")}
    assert {
        file.name.removesuffix(".o") for file in (tree / "opt/gateway/gateway/kernel/bpf/objects").glob("*.o")
    } == sources
    second = inside(tree, "/opt/gateway/gw", "version")
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert second.stderr == "", "the second time there is nothing to do"
    # The stubs do notice: the same way, a package with a service.
    control = inside(
        tree, "sh", "-c", "DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends cron"
    )
    assert control.returncode == 0, control.stderr[-4000:]
    assert "cron" in (tree / CALLS).read_text()
    assert enabled(tree) != before


def test_a_package_with_a_service_is_refused(tree: Path) -> None:
    script = tree / "opt/gateway/gw"
    script.write_text(script.read_text().replace('PACKAGES="nftables', 'PACKAGES="cron nftables'))
    done = inside(tree, "/opt/gateway/gw", "version")
    assert done.returncode == 1
    assert "would enable or start a service" in done.stderr
    assert not (tree / "usr/sbin/cron").exists()
    assert not (tree / "usr/sbin/nft").exists(), "nothing is installed when one package is refused"
