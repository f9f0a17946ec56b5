"""What clients are not told: the way to resolvers that would answer behind our back, and keys that hide names. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.dns import message

CANARY = "use-application-dns.net"
"""Firefox asks for it before it turns to DNS over HTTPS by itself; NXDOMAIN says not to (support.mozilla.org)."""
RESOLVERS = "resolver.arpa"
"""Under it clients look for encrypted resolvers. Whoever has none to offer answers by himself, and empty (RFC 9462
sections 4 and 6.1)."""
SERVICES = (message.SVCB, message.HTTPS, 255)


@dataclass(frozen=True, slots=True)
class Policy:
    """``refused``: names that do not exist here, with all below them. ``canary``, ``ddr``: answer ``CANARY`` and
    ``RESOLVERS`` ourselves. ``ech``: take the keys of Encrypted Client Hello out of answers."""

    refused: frozenset[str] = frozenset()
    canary: bool = False
    ddr: bool = False
    ech: bool = False

    def holds(self, name: str) -> bool:
        """Whether ``name`` is answered here."""
        if (self.canary and name == CANARY) or (self.ddr and under(name, RESOLVERS)):
            return True
        while name and self.refused:
            if name in self.refused:
                return True
            name = name.partition(".")[2]
        return False

    def answer(self, query: bytes, name: str) -> bytes | None:
        """To a client's ``query`` for ``name``; None where it goes the usual way."""
        if not self.holds(name):
            return None
        return message.reply(query, message.NOERROR if self.ddr and under(name, RESOLVERS) else message.NXDOMAIN)

    def clean(self, answer: bytes, kind: int) -> bytes:
        """``answer`` to a question of type ``kind`` as clients may see it. Raises PeerError."""
        if not self.ech or kind not in SERVICES:
            return answer
        from gateway.dns.ech import without_ech  # 4 MB and 50 ms that most do without

        return without_ech(answer)


def under(name: str, parent: str) -> bool:
    return name == parent or name.endswith(f".{parent}")
