"""The error tree.

::

    GatewayError
      ConfigError(message, path)   the user can mend the JSON; carries its JSON path
      ProtocolError                bytes are wrong
        PeerError                  the other side broke the rules
        LocalError                 we asked our own codec for nonsense (a bug, never swallowed)
      AuthError                    right bytes, wrong secret; the peer learns no detail
      DialError(message, stage)    resolve | connect | tls | handshake
      KernelError(op, errno)       the kernel refused an operation
      Rejected(reason)             a rule said no; not an error in the log

A module adds a subclass only where some caller catches it by name.
"""

from __future__ import annotations

import os
from typing import Literal

Stage = Literal["resolve", "connect", "tls", "handshake"]


class GatewayError(Exception):
    """Root of everything raised on purpose."""


class ConfigError(GatewayError):
    """The configuration is wrong: ``message`` says what to write instead.

    ``path`` is the JSON path from the root (``outbounds[0].server_port``); ``file`` and ``line`` are filled in by the
    loader, which alone knows them.
    """

    def __init__(self, message: str, path: str = "", file: str = "", line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.file = file
        self.line = line

    def __str__(self) -> str:
        place = ":".join(part for part in (self.file, str(self.line) if self.line else "") if part)
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ProtocolError(GatewayError):
    """Bytes are wrong."""


class PeerError(ProtocolError):
    """The other side sent what its specification forbids; ends that flow only."""


class LocalError(ProtocolError):
    """We asked a codec for something it cannot say; a bug of ours."""


class AuthError(GatewayError):
    """Well-formed, but the secret is wrong."""


class DialError(GatewayError):
    """A connection could not be made; ``stage`` says how far it came."""

    def __init__(self, message: str, stage: Stage = "connect") -> None:
        super().__init__(message)
        self.stage = stage


class KernelError(GatewayError):
    """The kernel refused ``op``; ``errno`` is its number, 0 if it gave none."""

    def __init__(self, op: str, errno: int = 0, detail: str = "") -> None:
        reason = os.strerror(errno) if errno else ""
        super().__init__(": ".join(part for part in (op, reason, detail) if part))
        self.op = op
        self.errno = errno


class Rejected(GatewayError):
    """A rule rejected the flow. ``drop`` means: let the client wait, send nothing."""

    def __init__(self, reason: str = "", *, drop: bool = False) -> None:
        super().__init__(reason)
        self.drop = drop
