"""The ``tls`` object of outbounds and DNS servers; ``ech``, ``utls``, ``reality`` and fragmenting are not built yet."""

from __future__ import annotations

from typing import Literal

from gateway.config.fields import as_list
from gateway.config.shared import Options, RemoteOptions
from gateway.tls.context import Demands, authorities
from gateway.tls.suites import openssl

Version = Literal["", "1.0", "1.1", "1.2", "1.3"]


class OutboundTLSOptions(Options):
    """``certificate`` (lines of PEM text) comes before ``certificate_path``; with either, the authorities in it are
    believed and the system's are not. ``cipher_suites`` choose below TLS 1.3 alone."""

    enabled: bool = False
    disable_sni: bool = False
    server_name: str = ""
    insecure: bool = False
    alpn: str | list[str] | None = None
    min_version: Version = ""
    max_version: Version = ""
    cipher_suites: str | list[str] | None = None
    certificate: str | list[str] | None = None
    certificate_path: str = ""

    def __post_init__(self) -> None:
        for name in as_list(self.alpn):
            if not 0 < len(name.encode()) < 256:
                raise ValueError("a name in alpn has 1 to 255 bytes")
        openssl(tuple(as_list(self.cipher_suites)))
        lowest = self.min_version or "1.2"
        if self.max_version and self.max_version < lowest:
            raise ValueError(f"max_version {self.max_version} is below min_version, which is {lowest}")
        if self.pem:
            authorities(self.pem)

    @property
    def pem(self) -> str:
        """Of ``certificate``."""
        return "\n".join(as_list(self.certificate))

    def demands(self, pem: str, protocols: tuple[str, ...] = ()) -> Demands:
        """With the authorities of ``pem`` ("" = the system's); ``protocols`` are offered where ``alpn`` is not set."""
        return Demands(
            self.insecure, tuple(as_list(self.alpn)) or protocols, self.min_version, self.max_version,
            tuple(as_list(self.cipher_suites)), pem,
        )  # fmt: skip


class TLSRemoteOptions(RemoteOptions, kw_only=True):
    """Dial fields and the address of a server that may speak TLS."""

    tls: OutboundTLSOptions | None = None
