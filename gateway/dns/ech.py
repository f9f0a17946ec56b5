"""Takes the keys of Encrypted Client Hello out of answers. Pure."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
from dns.rdata import Rdata
from dns.rdatatype import HTTPS, RRSIG, SVCB
from dns.rdtypes.svcbbase import ParamKey, SVCBBase
from dns.rrset import RRset, from_rdata_list

from gateway.core.errors import PeerError
from gateway.dns import message


def without_ech(answer: bytes) -> bytes:
    """``answer`` without parameter 5, "ech", of its SVCB and HTTPS records (RFC 9460 section 14.3.2); a record that
    cannot be used without it is left out. What is changed is signed no more. Raises PeerError."""
    try:
        read = dns.message.from_wire(answer, ignore_trailing=True)
        sections = [_without(read.answer), _without(read.additional)]
        if sections == [read.answer, read.additional]:
            return answer
        read.answer[:], read.additional[:] = sections
        read.flags &= ~dns.flags.AD
        return read.to_wire(max_size=message.LARGEST)
    except (dns.exception.DNSException, ValueError) as error:
        raise PeerError(f"dns: service record: {error}") from None


def _without(section: list[RRset]) -> list[RRset]:
    found: list[RRset] = []
    changed = set()
    for one in section:
        if one.rdtype in (SVCB, HTTPS):
            kept = [plain for record in one if (plain := _plain(record)) is not None]
            if kept != list(one):
                changed.add((one.name, one.rdtype))
                one = from_rdata_list(one.name, one.ttl, kept) if kept else RRset(one.name, one.rdclass, one.rdtype)
        found.append(one)
    return [one for one in found if one and not (one.rdtype == RRSIG and (one.name, one.covers) in changed)]


def _plain(record: Rdata) -> Rdata | None:
    if not isinstance(record, SVCBBase) or ParamKey.ECH not in record.params:  # of another class it has no parameters
        return record
    mandatory = record.params.get(ParamKey.MANDATORY)
    if mandatory is not None and ParamKey.ECH in mandatory.keys:
        return None
    return record.replace(params={key: value for key, value in record.params.items() if key != ParamKey.ECH})
