"""Shadowsocks, inbound and outbound, TCP and UDP.

Specifications: shadowsocks.org "AEAD ciphers" (SIP004, subkeys SIP007) and SIP022 (2022 edition) with SIP023
(identity headers of several users). ``none`` is the plain address header, for use inside another protection.

::

    AEAD, TCP, each direction     salt | [length+tag | payload+tag]...        first payload starts with the address
    AEAD, UDP                     salt | (address, data)+tag                  nonce 0
    2022, TCP request             salt | EIH* | (0, time, size)+tag | (address, padding, data)+tag | [chunk]...
    2022, TCP response            salt | (1, time, request salt, size)+tag | data+tag | [chunk]...
    2022, UDP aes                 ECB(session, packet) | EIH* | (type, time, [session], padding, address, data)+tag
    2022, UDP chacha20            nonce(24) | (session, packet, type, time, [session], padding, address, data)+tag

Files: ``cipher`` methods and subkeys; ``codec`` TCP; ``packet`` UDP; ``replay`` what was seen already; ``inbound`` and
``outbound`` the sockets.
"""
