"""What sing-box 1.12 still takes and will not for ever, written as it is to be written now. Pure."""

from __future__ import annotations

from typing import Any


def modern_dns(dns: Any) -> tuple[Any, list[str]]:
    """The ``dns`` object with its ``fakeip`` object in the server that it is of, and a note for each place. Anything
    else, wrong things too, is left as it is."""
    if not isinstance(dns, dict) or not isinstance(dns.get("servers", []), list):
        return dns, []
    ranges = dns.get("fakeip")
    notes: list[str] = []
    servers = []
    for index, server in enumerate(dns.get("servers", [])):
        if isinstance(server, dict) and "type" not in server and server.get("address") == "fakeip":
            found = ranges if isinstance(ranges, dict) else {}
            rest = {key: value for key, value in server.items() if key != "address"}
            fields = {key: value for key, value in found.items() if key != "enabled"}
            server = {**rest, "type": "fakeip", **fields}
            notes.append(f'dns.servers[{index}].address: deprecated; write "type": "fakeip"')
        servers.append(server)
    if not isinstance(ranges, dict):
        return ({**dns, "servers": servers} if notes else dns), notes
    notes.append("dns.fakeip: deprecated; write inet4_range and inet6_range into the server")
    return {**{key: value for key, value in dns.items() if key != "fakeip"}, "servers": servers}, notes
