"""A network interface that flows are routed into: docs/protocol/tun.md.

::

    route or mark into the device ── TCP, UDP ──> inet gateway_tun_N (tproxy) ──> transparent sockets ──> router
                                  └─ the rest ──> the device's descriptor ─────> ICMP echo, unreachable

TCP and UDP never cross to userspace as packets: the stack is the kernel's own. ``codec`` reads and writes the packets
that do.
"""
