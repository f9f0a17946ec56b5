"""HTTP/1.1 proxy: CONNECT both ways, plain (absolute-form) requests inbound.

Specifications: RFC 9110 (section 9.3.6 CONNECT, 7.6.1 hop-by-hop fields, 11.7 proxy authentication), RFC 9112 (3.2.2
absolute form), RFC 7617 (Basic). The ``tls`` object is not built yet.

::

    > CONNECT example.com:443 HTTP/1.1        < HTTP/1.1 200 Connection established        then bytes as they are
    > GET http://example.com/ HTTP/1.1        > GET / HTTP/1.1  (to example.com:80)        one request after another
"""
