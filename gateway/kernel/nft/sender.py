"""Who sent the first datagram of a UDP flow that was steered to userspace.

The maps ``sender4`` and ``sender6`` of ``nft/steer.nft`` know it for 5 seconds from then on.
"""

from __future__ import annotations

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel.netlink.lookup import Lookup
from gateway.kernel.nft.element import ELEMENT, INET, KEY, LIST_ELEMENTS, LIST_SET, LIST_TABLE, TABLE, VALUE
from gateway.kernel.nft.message import NETLINK_NETFILTER, attribute, attributes, nested, pairs, string
from gateway.kernel.nft.watch import GET_ELEMENTS

DATA = 2
HEADER = bytes((INET, 0, 0, 0))
"""struct nfgenmsg."""


class Senders:
    """Looks in the network namespace where it was made. Not for use by several threads."""

    def __init__(self) -> None:
        self._lookup: Lookup | None = None
        try:
            self._lookup = Lookup(NETLINK_NETFILTER)
        except KernelError:
            pass  # a kernel without nf_tables steers nothing

    def find(self, source: IP) -> bytes:
        """Hardware address of 6 bytes; b"" where none is known. Raises KernelError for an answer that is none, and
        OSError."""
        if self._lookup is None:
            return b""
        place = string(LIST_TABLE, TABLE) + string(LIST_SET, f"sender{source.version}")
        wanted = nested(LIST_ELEMENTS, nested(ELEMENT, nested(KEY, attribute(VALUE, source.packed))))
        answer = self._lookup.ask(GET_ELEMENTS, HEADER + place + wanted)
        try:
            for _, element in pairs(attributes((answer or b"")[len(HEADER) :]).get(LIST_ELEMENTS, b"")):
                return attributes(attributes(element)[DATA])[VALUE][:6]
        except (ValueError, KeyError) as error:
            raise KernelError("nft elements", 0, str(error)) from error
        return b""

    def close(self) -> None:
        """Any number of times."""
        if self._lookup is not None:
            self._lookup.close()
