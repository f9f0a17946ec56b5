"""DHCPv4 on an uplink: RFC 2131, with 2132 (options), 3396 (long options), 3397 (search list), 3442 (classless routes).

::

    codec    bytes <-> Message, IPv4 and UDP headers                     pure
    lease    what a reply grants, checked and repaired; its file format  pure
    machine  the client's states: handle(event, now) -> commands         pure
    inform   DHCPINFORM, where the address is another program's          pure
    port     AF_PACKET while there is no address, UDP port 68 while there is one
    rim      ties a machine and the port to the event loop and the clock
    client   machine in its rim, with the lease file
    enquirer inform in its rim
"""
