"""The one byte of fwmark and ct mark that is ours (bits 24-31); the other 24 bits belong to others. Pure.

::

    31    27 26  25  24
    [ socket ][ class ]
      socket  what BPF says of a local socket: 0 nothing, 1-29 process classes of the compiled rules,
              30 a combination the compiler did not foresee (goes to userspace), 31 the gateway's own sockets
      class   of a flow, in the ct mark: 0 none, 1 USER, 2 DIRECT, 3 SNIFF, 4 BLOCK, 5 NAMES (a query that our
              listener took), 7 TUN (of a tun inbound, bits 27-31 say which); odd = userspace carries it, and its
              entry goes when we do.
              In a packet's mark only bit 24 is used: the routing bit, set by nft alone. (25 and 26 are set by the
              table of a tun inbound for a look at the routes, and taken away again.)

No socket ever carries bit 24 in SO_MARK: the kernel would route it to lo inside connect(2), before nft sees it.
"""

from __future__ import annotations

BYTE = 0xFF000000
ROUTE = 0x01000000
"""Packet mark bit that the ip rule delivers to ``lo`` (and so to the tproxy listener)."""

CLASS = 0x07000000
USER = 0x01000000
DIRECT = 0x02000000
SNIFF = 0x03000000
BLOCK = 0x04000000
NAMES = 0x05000000
TUN = 0x07000000

SOCKET = 0xF8000000
SOCKET_SHIFT = 27
UNKNOWN = 30
SELF = 31
OWN = SELF << SOCKET_SHIFT
"""SO_MARK of every socket the gateway opens while it steers."""

TABLE = 2380
"""Routing table that holds ``local default dev lo`` for both families."""
RULE_PRIORITY = 238
"""Priority of the ip rule ``fwmark ROUTE/ROUTE lookup TABLE``: before what others have for their own marks or for every
packet (l3mdev 1000, mwan3 1001-3253, Tailscale 5210-5270, netifd 10000-90000), since a packet may have both marks."""
TUN_TABLE = 2381
"""The first of as many tables as there are tun inbounds: the same, on the device of each."""
PROTO = 238
"""rtnetlink protocol number of the routes that the gateway itself makes (lease routes use 16, dhcp)."""
TUN_PROTO = 239
"""The same, of the ip rules of tun inbounds."""
