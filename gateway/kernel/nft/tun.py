"""The owned table of one tun inbound: the first free of ``inet gateway_tun_0`` to 31."""

from __future__ import annotations

import errno

from gateway.core.errors import KernelError
from gateway.kernel import conntrack, mark
from gateway.kernel.nft.element import delete_table
from gateway.kernel.nft.library import OWNER, Library, folder, owners
from gateway.kernel.nft.tun_render import NUMBERS, Elements, Tunnel, commands, fill, mine, skeleton, table
from gateway.kernel.reaper import Reaper, Will

_WHO = mark.CLASS | mark.SOCKET


class Table:
    """Claims a number, in the network namespace of the calling thread; ``load`` makes it work. It vanishes with the
    process, and what is left of its flows with a reaper of its own. Raises KernelError."""

    def __init__(self) -> None:
        self._library = Library()
        self._owned = owners(self._library)
        self.number = self._claim()
        self._sets: Elements = {}
        name = table(self.number).partition(" ")[2]
        try:
            self._reaper: Reaper | None = Reaper(Will() if self._owned else Will(delete_table(name)))
            conntrack.delete_marked(mine(self.number), _WHO)
        except KernelError:
            self._library.close()
            raise

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
        """In one transaction. Raises KernelError; ValueError on a bad interface name."""
        text = skeleton((folder() / "tun.nft").read_text(), self.number, plan.device)
        if not self._owned:
            text = text.replace(OWNER, "")
        self._library.run(text + "\n" + commands(plan, self.number))
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
            conntrack.delete_marked(mine(self.number), _WHO)
