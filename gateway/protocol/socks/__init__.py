"""SOCKS 4, 4a and 5, inbound and outbound; UDP over SOCKS 5.

Specifications: RFC 1928 (SOCKS 5), RFC 1929 (user and password), and the SOCKS 4 and 4A protocol notes of NEC and
OpenSSH's authors. GSSAPI and BIND are not built; fragments of UDP are refused.

::

    SOCKS 5   >  5 n method*n      < 5 method
              >  1 n user n password                < 1 status          (method 2)
              >  5 command 0 ATYP host port         < 5 code 0 ATYP host port
    UDP          0 0 fragment ATYP host port data
    SOCKS 4   >  4 command port host4 user 0        < 0 code port host4
    SOCKS 4A  >  4 command port 0.0.0.x user 0 name 0
"""
