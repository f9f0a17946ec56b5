"""Whether a certificate is the right one, and why TLS failed, in words that help."""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from typing import Any

_VERIFY = {
    2: "its certificate was signed by an authority that is not known here",
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself, and not known here",
    19: "its certificate was signed by an authority that is not known here",
    20: "its certificate was signed by an authority that is not known here",
    21: "its certificate was signed by an authority that is not known here",
    23: "its certificate is revoked",
}
_NAME = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_REASONS = {
    "WRONG_VERSION_NUMBER": "the server does not speak TLS",
    "HTTP_REQUEST": "the server does not speak TLS",
    "UNEXPECTED_MESSAGE": "the server does not speak TLS as it should",
    "UNSUPPORTED_PROTOCOL": "no TLS version in common",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no TLS version in common, says the server",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "nothing in common with the server: cipher suites, versions or ALPN",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "no ALPN protocol in common, says the server",
    "TLSV1_UNRECOGNIZED_NAME": "the server does not know this server_name",
    "TLSV1_ALERT_INTERNAL_ERROR": "the server had an internal error",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server wants a certificate of the client",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "a record does not verify",
}


def reason(error: ssl.SSLError, name: str = "") -> str:
    """``error`` of a connection to ``name``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME:
            return f'its certificate is not for "{name}"'
        return f"{_VERIFY.get(error.verify_code, error.verify_message)} (asked for {name})"
    known = _REASONS.get(error.reason or "")
    return known or (error.reason or str(error)).lower().replace("_", " ")


def is_for(certificate: dict[str, Any], name: str) -> bool:
    """Whether ``certificate`` (as ``SSLObject.getpeercert`` gives it) is for ``name``, a host name or an address: RFC
    6125 section 6.4, a wildcard being a whole first label."""
    try:
        wanted = ip_address(name)
    except ValueError:
        pass
    else:
        found = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "IP Address"]
        return wanted in [ip_address(value) for value in found]
    name = name.lower()
    names = {value.lower().rstrip(".") for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    first, dot, rest = name.partition(".")
    return name in names or bool(first and dot and f"*.{rest}" in names)
