"""Trojan, outbound, TCP and UDP: a request in front of plain bytes, meant for use inside TLS.

Specification: trojan-gfw.github.io "The Trojan Protocol".

::

    request    key(56 hex digits) CRLF | command | address | CRLF | bytes both ways
    UDP        ... | address | length(2) | CRLF | data, again and again, both ways

The key is SHA-224 of the password; ``address`` is SOCKS5's (``core.socksaddr``). A server answers nothing: who has the
wrong password talks to what the server pretends to be.
"""
