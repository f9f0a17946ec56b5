"""VLESS, outbound, TCP and UDP: a request with a UUID in front of plain bytes, meant for use inside TLS.

Specification: xtls.github.io "VLESS protocol" (version 0); xudp is Mux.Cool's framing with an address in each frame,
packetaddr v2fly's; both as sing-box 1.12 speaks them.

::

    request    0 | UUID(16) | add-ons length(1)=0 | command | port(2) | address | bytes both ways
    response   0 | add-ons length(1) | add-ons | bytes
    UDP        request of command 2; then length(2) | data, all to and from the one address of the request
    packetaddr the same to sp.packet-addr.v2fly.arpa; data begins with address | port(2)
    xudp       request of command 3, without address; then
               length(2) | session(2)=0 | status | options | 2 | port(2) | address | length(2) | data

``address`` is type 1 (IPv4), 2 (name, one byte of length before it) or 3 (IPv6); in packetaddr 1 (IPv4) or 2 (IPv6).

Files: ``codec`` request, response, UUIDs; ``packet`` the three framings of datagrams; ``apart`` one connection for each
peer, where the framing knows one alone.
"""
