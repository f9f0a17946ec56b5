"""Whoever is logged in to this host by SSH is not steered away from it: what this host begins to such a host is direct
unless a rule names its address. (Answers to what came in never are, by the shape of the owned table.)"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel.login import Sessions
from gateway.kernel.plan import Peer
from gateway.kernel.steer import Steerer


class Logins:
    """``named``: whether a rule names an address; ``changed`` is called when other rules are needed (``kinds``) and
    raises KernelError. ``heard`` is to be told what ``look``, which any thread may call, finds every few seconds."""

    def __init__(self, named: Callable[[IP], bool], changed: Callable[[], None]) -> None:
        self._named = named
        self._changed = changed
        self.look = Sessions().look
        self._steerer: Steerer | None = None
        self.peers: frozenset[IP] = frozenset()
        """Exempt."""

    @property
    def kinds(self) -> tuple[Peer, ...]:
        """What the kernel has to look for."""
        return tuple(sorted({_set(ip) for ip in self.peers}))

    def use(self, steerer: Steerer | None) -> None:
        """Another table, whose sets are empty, and whose rules know ``kinds``. Raises KernelError."""
        self._steerer = steerer
        for ip in self.peers:
            self._put(ip)

    def heard(self, peers: Iterable[IP]) -> None:
        """Raises KernelError; it is to be told again then."""
        before, kinds = self.peers, self.kinds
        self.peers = frozenset(ip for ip in peers if not self._named(ip))
        try:
            for ip in self.peers - before:
                self._put(ip)
            if self.kinds != kinds:
                self._changed()
            if self._steerer is not None:
                for ip in before - self.peers:
                    self._steerer.take(_set(ip), [ip.packed])
        except KernelError:
            self.peers = before
            raise

    def _put(self, ip: IP) -> None:
        if self._steerer is None:
            return
        try:
            self._steerer.put(_set(ip), ip.packed, 0)
        except KernelError as error:
            if error.errno != errno.ENFILE:  # more than the set holds go by the rules
                raise


def _set(ip: IP) -> Peer:
    return "peers4" if ip.version == 4 else "peers6"
