"""The owned table of one tun inbound: the first free of ``inet gateway_tun_0`` to 31."""

from __future__ import annotations

import errno

from gateway.core.errors import KernelError
from gateway.kernel import conntrack, mark
from gateway.kernel.nft.element import delete_table
from gateway.kernel.nft.library import OWNER, Library, folder, owners
from gateway.kernel.nft.tun_render import NUMBERS, Elements, Tunnel, fill, mine, prepare, skeleton, switch, table
from gateway.kernel.reaper import Reaper, Will

_WHO = mark.CLASS | mark.SOCKET


class Table:
    """Claims a number, in the network namespace of the calling thread; ``load`` makes it work. It vanishes with the
    process, and what is left of its flows with a reaper of its own. ``names``: it will redirect port 53. Raises
    KernelError."""

    def __init__(self, names: bool = False) -> None:
        self._names = names
        self._library = Library(first=True)
        self._owned = owners(self._library)
        self.number = self._claim()
        self._sets: Elements = {}
        name = table(self.number).partition(" ")[2]
        try:
            will = Will() if self._owned else Will(delete_table(name))
            self._reaper: Reaper | None = Reaper(
                will, request=b"".join(conntrack.delete_request(*one) for one in self._left)
            )
            self._forget()
        except KernelError:
            self._library.close()
            raise

    @property
    def _left(self) -> tuple[tuple[int, int], ...]:
        """Mark and mask of the entries that lead to our sockets: they have no NAT, or one to a port of ours."""
        flows = (mine(self.number), _WHO)
        return (flows, (mark.NAMES, mark.CLASS)) if self._names else (flows,)

    def _forget(self) -> None:
        for one in self._left:
            conntrack.delete_marked(*one)

    def _claim(self) -> int:
        refused: KernelError | None = None
        for number in range(NUMBERS):
            try:
                self._library.run(f"create table {table(number)} {{\n{OWNER if self._owned else ''}}}\n")
                return number
            except KernelError as error:
                refused = refused or error
        raise KernelError("nft", errno.EBUSY, f"no table for a tun inbound: {refused}")

    def load(self, plan: Tunnel) -> None:
        """Once; in force from one moment on. Raises KernelError, and it is of use only to be closed then; ValueError on
        a bad interface name."""
        text = skeleton((folder() / "tun.nft").read_text(), self.number, plan.device)
        if not self._owned:
            text = text.replace(OWNER, "")
        try:
            self._library.run(text + "\n" + prepare(plan, self.number))
            self._library.run(switch(plan, self.number))
        except KernelError as error:
            needs = "it needs CONFIG_NFT_TPROXY, CONFIG_NFT_FIB_INET, CONFIG_NFT_CT, CONFIG_NFT_REDIR, CONFIG_NFT_NAT"
            raise KernelError("table of a tun inbound", error.errno, f"{error}; {needs}") from None
        self._sets = dict(plan.sets)

    def fill(self, sets: Elements) -> None:
        """Make these sets hold that, in one transaction. Raises KernelError, and they are as they were."""
        if text := fill(self.number, self._sets, sets):
            self._library.run(text)
        self._sets |= sets

    def close(self) -> None:
        """The table goes, then its flows' entries. Any number of times."""
        if self._library.fd >= 0 and not self._owned:
            self._library.run(f"delete table {table(self.number)}\n")
        self._library.close()
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.end()
            self._forget()
