"""TLS towards one server: the name that its certificate must have, and the authorities that may vouch for it."""

from __future__ import annotations

from pathlib import Path

from gateway.core.errors import ConfigError
from gateway.tls.context import authorities, context
from gateway.tls.layer import TLSLayer
from gateway.tls.options import OutboundTLSOptions

LARGEST = 4 << 20
"""Bytes of a file of authorities."""


class Client:
    """``server`` is the name or address that is dialled; ``protocols`` are offered by ALPN where the options name none.
    ``certificate_path`` is read here, from ``directory`` on. Raises ConfigError, its path from the ``tls`` object on.
    """

    def __init__(
        self, options: OutboundTLSOptions, server: str, directory: Path, protocols: tuple[str, ...] = ()
    ) -> None:
        self.name = (options.server_name or server).strip("[]").rstrip(".")
        """What the certificate must be for."""
        if not self.name and not options.insecure:
            raise ConfigError("write the server's name here, or insecure: true", "server_name")
        self._named = not options.disable_sni
        pem = options.pem or read(directory, options.certificate_path)
        self._context = context(options.demands(pem, protocols), self._named)

    def layer(self) -> TLSLayer:
        """For one connection. Raises ValueError for a name that cannot be sent."""
        if self._named:
            return TLSLayer(self._context, self.name)
        return TLSLayer(self._context, None, self.name)


def read(directory: Path, path: str) -> str:
    """The authorities in file ``path``. Raises ConfigError."""
    if not path:
        return ""
    try:
        with (directory / path).open(encoding="latin-1") as file:
            text = file.read(LARGEST)
        authorities(text)
    except OSError as error:
        raise ConfigError(f"{directory / path}: {error.strerror}", "certificate_path") from error
    except ValueError as error:
        raise ConfigError(f"{directory / path}: {error}", "certificate_path") from error
    return text
