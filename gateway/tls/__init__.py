"""What wraps a stream in TLS.

Specifications: RFC 8446 (1.3), RFC 5246 (1.2), RFC 6066 section 3 (server name), RFC 7301 (ALPN), RFC 6125 (names in
certificates). OpenSSL does the protocol, in memory: no socket of its own.

::

    options   the ``tls`` object of outbounds and DNS servers
    client    what one server is asked for and held to
    context   OpenSSL's part of that, one for all who ask alike
    layer     handshake and records as a ``core.stream.Layer``
    suites    cipher suites by the names the configuration has for them
    verdict   why a handshake failed, in words
"""
