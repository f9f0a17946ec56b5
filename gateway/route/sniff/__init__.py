"""What protocol a flow speaks and which name it asks for, told from its first bytes. Pure.

Not parsers of whole protocols: they read as far as the name and never raise, whatever the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.flow import Findings
from gateway.route.sniff import dns, http, quic, tls
from gateway.route.sniff.verdict import NEED_MORE, More, Sniffed

__all__ = ["NEED_MORE", "PACKET", "STREAM", "More", "PacketState", "Sniffed", "note", "sniff_packet", "sniff_stream"]

LONGEST = 1 << 16
"""Bytes after which waiting for more of a stream is given up."""

STREAM: dict[str, Callable[[bytes], Sniffed | More | None]] = {
    "tls": tls.sniff, "http": http.sniff, "dns": dns.sniff_stream,
}  # fmt: skip
PACKET = ("quic", "dns")


class PacketState:
    """What the datagrams of one flow told so far; one object a flow, at most 64 KB."""

    __slots__ = ("quic",)

    def __init__(self) -> None:
        self.quic: quic.State | None = None


def note(findings: Findings, found: Sniffed) -> None:
    """A name that was found before stays where the new protocol shows none."""
    findings.protocol, findings.client = found.protocol, found.client
    findings.domain = found.domain or findings.domain


def sniff_stream(data: bytes, names: frozenset[str] | None = None) -> Sniffed | More | None:
    """What the first bytes of a stream are; ``names`` limits the sniffers (None: all). None: nothing known and more
    bytes would not help. NEED_MORE: ask again with more bytes (all of them, from the first)."""
    more: More | None = None
    for name, sniffer in STREAM.items():
        if names is not None and name not in names:
            continue
        found = sniffer(data)
        if isinstance(found, Sniffed):
            return found
        more = found or more
    return more if len(data) < LONGEST else None


def sniff_packet(
    data: bytes, names: frozenset[str] | None = None, state: PacketState | None = None
) -> Sniffed | More | None:
    """What one datagram is. With NEED_MORE ask again with the next datagram and the same ``state``; without a state a
    name spread over several datagrams is not found."""
    if names is None or "quic" in names:
        state = state or PacketState()
        state.quic = state.quic or quic.State()
        found = state.quic.feed(data)
        if found is not None:
            return found
    if names is None or "dns" in names:
        return dns.sniff(data)
    return None
