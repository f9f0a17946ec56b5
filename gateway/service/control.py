"""The control socket ``RUN/control.sock``: one JSON request line, one JSON answer line, for root only (0600).

Request ``{"command": NAME, ...}``, to which ``"peer"`` is added, the number of the process that asks (0: of another PID
namespace); answer ``{"ok": true, ...}`` or ``{"ok": false, "error": TEXT}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.errors import GatewayError

LIMIT = 1 << 20
"""Bytes of a request."""
ANSWER = 1 << 26
"""Bytes of an answer."""
PATIENCE = 10.0
"""Seconds a client may take to say its line."""

CREDENTIALS = struct.Struct("iII")
"""``struct ucred`` of SO_PEERCRED (unix(7)): process, user, group."""
LISTENS = 0x10000
"""__SO_ACCEPTCON of linux/net.h, in the flags of /proc/net/unix."""

Handler = Callable[[dict[str, Any]], dict[str, Any] | Awaitable[dict[str, Any]]]


class Control:
    """Serves ``handlers`` by command name. A socket left by a dead gateway is replaced; a living one is an OSError."""

    def __init__(self, folder: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = folder / "control.sock"
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self.refusal = ""
        """What every request is answered, unless it is empty."""

    async def start(self) -> None:
        if self.path.exists():
            if alive(self.path):
                raise OSError(f"a gateway already runs here ({self.path})")
            self.path.unlink()
        old = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=LIMIT)
        finally:
            os.umask(old)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
            sock = writer.get_extra_info("socket")
            peer = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[0]
            writer.write(msgspec.json.encode(await self._answer(line, peer)) + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # the client went away or never spoke
        finally:
            writer.close()

    async def _answer(self, line: bytes, peer: int) -> dict[str, Any]:
        if self.refusal:
            return {"ok": False, "error": self.refusal}
        try:
            request = json.loads(line)
            handler = self._handlers[request["command"]]
        except (ValueError, KeyError, TypeError):
            return {"ok": False, "error": f"no such command; commands: {', '.join(self._handlers)}"}
        try:
            answer = handler({**request, "peer": peer})
            return {"ok": True, **(await answer if isinstance(answer, Awaitable) else answer)}
        except GatewayError as error:
            return {"ok": False, "error": str(error)}


def listener(path: Path) -> int:
    """The process that listens at ``path``, whether it answers or hangs; 0 where we cannot see it (another PID
    namespace), -1 where there is none."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        except BlockingIOError:
            return _holder(path)  # it hangs, and many have asked it already
        except OSError:
            return -1
    return int(CREDENTIALS.unpack(credentials)[0])


def _holder(path: Path) -> int:
    """The process that has the socket at ``path`` open, 0 where we see none. proc(5), /proc/net/unix."""
    rows = [row.split(maxsplit=7) for row in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]]
    sockets = {f"socket:[{row[6]}]" for row in rows if row[7:] == [str(path)] and int(row[3], 16) & LISTENS}
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = f"/proc/{process}/fd"
            if any(os.readlink(f"{folder}/{number}") in sockets for number in os.listdir(folder)):
                return int(process)
    return 0


def alive(path: Path) -> bool:
    """Whether a gateway listens at ``path``."""
    return listener(path) >= 0


def ask(folder: Path, request: dict[str, Any], timeout: float = 30.0) -> dict[str, Any]:
    """Send ``request`` to the gateway of ``folder`` and return its answer. Raises GatewayError where none runs."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(folder / "control.sock"))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as stream:
                answer: dict[str, Any] = json.loads(stream.readline(ANSWER))
        except (OSError, ValueError) as error:
            raise GatewayError(f"no gateway answers at {folder}: {error}") from None
    return answer
