"""Cipher suites: names of the configuration (IANA's, as Go has them) to OpenSSL's. Pure.

Those of TLS 1.3 may be written and choose nothing: there each end offers all of its own, as in Go.
"""

from __future__ import annotations

MODERN = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})
"""Of TLS 1.3."""

SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
"""Of TLS 1.2 and below, all that Go calls secure."""


def openssl(names: tuple[str, ...]) -> list[str]:
    """OpenSSL's names of those below TLS 1.3, in the order given. Raises ValueError for an unknown name."""
    for name in names:
        if name not in SUITES and name not in MODERN:
            raise ValueError(f'unknown cipher suite "{name}"; known: {", ".join([*sorted(MODERN), *SUITES])}')
    return [SUITES[name] for name in names if name in SUITES]
