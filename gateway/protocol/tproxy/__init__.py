"""Flows that nftables hands over with ``tproxy``: sockets bound to addresses that are not ours.

TCP: the accepted socket's own name is the original destination. UDP: it comes as ancillary data (IP_RECVORIGDSTADDR),
and answers leave from a socket bound to it (Linux, Documentation/networking/tproxy.rst). There is no codec.
"""
