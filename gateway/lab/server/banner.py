"""A server that speaks first, as SSH does: a banner that names the site and the client, then each line comes back."""

from __future__ import annotations

import asyncio
import contextlib

from gateway.lab.server.record import Journal, listener, plain, syn_ttl


async def start(journal: Journal, address: str, port: int) -> asyncio.Server:
    """Listen on ``address`` and ``port``; lines are at most 64 KiB, a longer one ends the connection."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, local = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        journal.add("banner", "open", client, local, ttl=syn_ttl(writer.get_extra_info("socket")))
        host, number = plain(client)
        with contextlib.suppress(OSError, ValueError):
            writer.write(f"SSH-2.0-lab_{journal.site} {host} {number}\r\n".encode())
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        writer.close()

    return await asyncio.start_server(accept, sock=listener(address, port))
