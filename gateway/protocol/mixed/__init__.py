"""SOCKS 4, 4a, 5 and HTTP proxy on one port: the first byte decides.

::

    0x04  SOCKS 4 or 4a        0x05  SOCKS 5        else  HTTP (a method's letter)
"""
