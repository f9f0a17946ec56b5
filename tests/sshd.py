"""OpenSSH's server on a host of the lab, and its client on others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Result
from tests import peers

RUN = Path("/run/sshd")
"""sshd changes its root to it before anybody has logged in, and takes no connection without it."""
OURS = 0o711
"""Its mode where a test has made it; Debian's is 755."""
SERVE = """
set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shadow" /etc/shadow
shift
exec "$@"
"""
"""Its users are those of this test: nothing of this machine's files counts or is changed."""
CLIENT = """User root
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
BatchMode yes
ConnectTimeout 5
LogLevel ERROR
IdentitiesOnly yes
"""


class Sshd:
    """A login for root on ``host`` by the key of this test. ``path``: PATH of who is logged in, "" for sshd's own."""

    def __init__(self, lab: Lab, host: Host, path: str = "") -> None:
        self.folder = lab.folder / "sshd"
        self._hold = hold()
        self._host = host
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.words = client(self.folder)
        """A client that is let in, on any host."""
        key(self.folder / "host")
        shells = "root:x:0:0:root:/root:/bin/sh\nsshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
        (self.folder / "passwd").write_text(shells + "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n")
        (self.folder / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n")
        (self.folder / "config").write_text(
            f"HostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/user.pub\nPidFile none\nUsePAM no\n"
            "StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            + (f"SetEnv PATH={path}\n" if path else "")
        )
        serve = [peers.path("sshd"), "-D", "-e", "-f", self.folder / "config"]
        words = ["unshare", "-m", "--propagation", "private", "sh", "-c", SERVE, "sh", self.folder, *serve]
        self._process = host.popen(words)
        host.wait_listening([("tcp", 22)], by=self._process)

    def run(self, host: Host, address: str, command: str, *more: str) -> Result:
        """``command`` by a connection of its own."""
        return host.run([*self.words, *more, address, command], timeout=40)

    @contextlib.contextmanager
    def session(self, host: Host, address: str, *more: str) -> Iterator[str]:
        """A connection that stays: the word by which ``run`` uses it."""
        control = self.folder / f"session-{host.name}-{len(more)}-{address}"
        master = host.popen([*self.words, *more, "-N", "-M", "-S", control, address])
        try:
            end = time.monotonic() + 30
            while not host.run([*self.words, "-S", control, "-O", "check", address]).ok:
                assert master.running, f"no connection to {address}: {master.told()}"
                assert time.monotonic() < end, f"{address} is silent: {master.told()}"
                time.sleep(0.1)
            yield f"-S{control}"
        finally:
            master.kill()

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BlockingIOError):  # another test's server needs it
            fcntl.flock(self._hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._hold).st_mode & 0o777 == OURS:
                RUN.rmdir()
        os.close(self._hold)


def key(path: Path) -> None:
    """A key without a passphrase, and ``path``.pub."""
    subprocess.run([peers.path("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def client(folder: Path) -> tuple[str, ...]:
    """The words of one that comes as root to who admits ``folder``/user.pub; made there, with its key."""
    key(folder / "user")
    (folder / "client").write_text(f"{CLIENT}IdentityFile {folder}/user\n")
    return str(peers.path("ssh")), "-F", str(folder / "client")


def hold() -> int:
    """RUN, made where it is not there, and locked so that no other test takes it away."""
    while True:
        with contextlib.suppress(FileExistsError):
            RUN.mkdir(OURS)
        with contextlib.suppress(FileNotFoundError):
            found = os.open(RUN, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(found, fcntl.LOCK_SH)
            if RUN.exists() and os.path.samestat(os.fstat(found), RUN.stat()):
                return found
            os.close(found)
