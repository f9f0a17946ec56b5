"""An OpenSSL context for all clients that ask alike.

As sing-box (Go's crypto/tls) has it: TLS 1.2 to 1.3, the system's authorities, names by subjectAltName alone, no
resumption, no renegotiation.
"""

from __future__ import annotations

import re
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from gateway.tls.suites import openssl

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where systems keep their authorities; asked where OpenSSL was built for other places."""

_VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]*-----END CERTIFICATE-----")
# Go's choice: forward secrecy, AES and ChaCha20.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES+SHA1"


class Demands(NamedTuple):
    """What a context is made of. ``certificate``: PEM text of the authorities to believe, "" = the system's."""

    insecure: bool = False
    alpn: tuple[str, ...] = ()
    min_version: str = ""
    max_version: str = ""
    cipher_suites: tuple[str, ...] = ()
    certificate: str = ""


def authorities(pem: str) -> str:
    """The certificates in ``pem``, without what stands between them. Raises ValueError where there are none."""
    found = "\n".join(_BLOCK.findall(pem))
    if not found:
        raise ValueError('no certificate in it; PEM text begins with "-----BEGIN CERTIFICATE-----"')
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except ssl.SSLError as error:
        raise ValueError(f"a certificate is damaged: {error.reason or error}") from None
    return found


@lru_cache(64)
def context(demands: Demands, named: bool = True) -> ssl.SSLContext:
    """``named`` False: OpenSSL is not told the server's name, so it checks the chain and leaves the name to us."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = named and not demands.insecure
    made.hostname_checks_common_name = False
    made.verify_mode = ssl.CERT_NONE if demands.insecure else ssl.CERT_REQUIRED
    # A certificate that is believed need not be its own issuer.
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    made.options |= ssl.OP_NO_RENEGOTIATION
    _limit(made, demands)
    if demands.alpn:
        made.set_alpn_protocols(list(demands.alpn))
    if demands.certificate:
        made.load_verify_locations(cadata=authorities(demands.certificate))
    elif not demands.insecure:
        _trust_system(made)
    return made


def _limit(made: ssl.SSLContext, demands: Demands) -> None:
    suites = openssl(demands.cipher_suites)
    made.minimum_version = _VERSIONS[demands.min_version or "1.2"]
    made.maximum_version = _VERSIONS[demands.max_version or "1.3"]
    if demands.cipher_suites and not suites:
        made.minimum_version = ssl.TLSVersion.TLSv1_3
    # Below TLS 1.2 signatures are made with SHA-1, which OpenSSL 3 has at its lowest level alone.
    level = 0 if made.minimum_version < ssl.TLSVersion.TLSv1_2 else 1
    made.set_ciphers(f"{':'.join(suites) or _CIPHERS}:@SECLEVEL={level}")


def _trust_system(made: ssl.SSLContext) -> None:
    places: Any = ssl.get_default_verify_paths()
    if places.cafile or places.capath:
        made.load_default_certs()
        return
    for bundle in BUNDLES:
        if Path(bundle).exists():
            made.load_verify_locations(bundle)
            return
