"""What a sniffer answers, and which names it lets through. Pure."""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Literal, NamedTuple


class Sniffed(NamedTuple):
    """``domain`` is lower case, ASCII, at most 253 bytes, without a final dot; empty where there is none. ``client``
    is empty where the sniffer does not tell clients apart."""

    protocol: str
    domain: str = ""
    client: str = ""


class Pending(enum.Enum):
    NEED_MORE = "need more"


NEED_MORE: Literal[Pending.NEED_MORE] = Pending.NEED_MORE
More = Literal[Pending.NEED_MORE]

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")


def domain_of(name: bytes) -> str:
    """``name`` as a domain, or "" where it is an address or no name that DNS could carry."""
    text = name.decode("ascii", "replace").lower().removesuffix(".")
    if len(text) > 253 or not _NAME.fullmatch(text):
        return ""
    return "" if text[-1].isdigit() and _is_address(text) else text


@lru_cache(1024)
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
