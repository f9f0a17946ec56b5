"""``query_type``: type of a DNS question, by name or number. Pure.

Inside a rule set sing-box 1.12.12 reads it and does not evaluate it; neither do we (see ``ruleset.headless``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item

if TYPE_CHECKING:
    from gateway.route.match import Subject

TYPES = {
    "A": 1, "NS": 2, "MD": 3, "MF": 4, "CNAME": 5, "SOA": 6, "MB": 7, "MG": 8, "MR": 9, "NULL": 10, "PTR": 12,
    "HINFO": 13, "MINFO": 14, "MX": 15, "TXT": 16, "RP": 17, "AFSDB": 18, "X25": 19, "ISDN": 20, "RT": 21,
    "NSAP-PTR": 23, "SIG": 24, "KEY": 25, "PX": 26, "GPOS": 27, "AAAA": 28, "LOC": 29, "NXT": 30, "EID": 31,
    "NIMLOC": 32, "SRV": 33, "ATMA": 34, "NAPTR": 35, "KX": 36, "CERT": 37, "DNAME": 39, "OPT": 41, "APL": 42,
    "DS": 43, "SSHFP": 44, "IPSECKEY": 45, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48, "DHCID": 49, "NSEC3": 50,
    "NSEC3PARAM": 51, "TLSA": 52, "SMIMEA": 53, "HIP": 55, "NINFO": 56, "RKEY": 57, "TALINK": 58, "CDS": 59,
    "CDNSKEY": 60, "OPENPGPKEY": 61, "CSYNC": 62, "ZONEMD": 63, "SVCB": 64, "HTTPS": 65, "SPF": 99, "UINFO": 100,
    "UID": 101, "GID": 102, "UNSPEC": 103, "NID": 104, "L32": 105, "L64": 106, "LP": 107, "EUI48": 108,
    "EUI64": 109, "TKEY": 249, "TSIG": 250, "IXFR": 251, "AXFR": 252, "MAILB": 253, "MAILA": 254, "ANY": 255,
    "URI": 256, "CAA": 257, "AVC": 258, "TA": 32768, "DLV": 32769,
}  # fmt: skip
"""IANA's registry of resource record types."""


class QueryType(Item):
    __slots__ = ("set",)
    key = "query_type"

    def __init__(self, values: frozenset[int]) -> None:
        super().__init__(values)
        self.set = values

    @classmethod
    def parse(cls, value: Any) -> QueryType:
        out = set()
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= 65535:
                out.add(one)
            elif isinstance(one, str) and one in TYPES:
                out.add(TYPES[one])
            else:
                raise ValueError(f'{one!r} is not a DNS query type; write for example "AAAA" or 28')
        return cls(frozenset(out))

    def match(self, subject: Subject) -> bool:
        return subject.query_type in self.set
