"""DHCPv4 clients by their command lines, as dhclient, dhcpcd, BusyBox's udhcpc and connmand read theirs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

CLIENTS = {"dhclient": "dhclient", "dhcpcd": "dhcpcd", "udhcpc": "udhcpc", "connmand": "connman"}
DHCLIENT_VALUED = frozenset(
    ("-p", "-s", "-g", "-e", "-D", "-cf", "-lf", "-pf", "-sf", "-df", "-R", "-timeout", "--timeout",
     "--address-prefix-len", "--decline-wait-time", "--dad-wait-time", "--prefix-len-hint")
)  # fmt: skip
DHCPCD_VALUED = frozenset("cCefFhIiljmOoQrSstuvWXyzZ")
DHCPCD_OTHER = frozenset(("6", "ipv6only", "k", "release", "x", "exit", "n", "rebind", "U", "dumplease"))
"""With one of these it is about IPv6 alone, or speaks to a dhcpcd that runs."""
UDHCPC_VALUED = frozenset("VHhFiprsTtAOxaP")
CONNMAN_VALUED = frozenset("cpidIw")
TITLE = re.compile(r"dhcpcd: (.*)", re.S)
"""What it writes over its command line once it runs: roles and families in brackets, interfaces between them."""


def program(words: Sequence[str]) -> str:
    """The name of what runs: of BusyBox the applet."""
    name = words[0].rpartition("/")[2]
    return words[1].rpartition("/")[2] if name == "busybox" and len(words) > 1 else name


def clients(words: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The DHCPv4 client that this process is, if any, and the interfaces that it was given; () is all."""
    if title := TITLE.match(words[0]):
        roles = re.findall(r"\[([^\]]*)\]", title[1])
        names = tuple(re.sub(r"\[[^\]]*\]", " ", title[1]).split())
        # Of its helpers, one a role, none asks by itself.
        if (names or {"manager", "master"} & {*roles}) and ("ip4" in roles or "ip6" not in roles):
            yield "dhcpcd", names
        return
    name = program(words)
    rest = [*words[2:]] if words[0].endswith("busybox") else [*words[1:]]
    if name not in CLIENTS:
        return
    kind = CLIENTS[name]
    if kind == "dhclient":
        if not {"-6", "-r", "-x"} & {*rest}:
            yield kind, _names(rest, DHCLIENT_VALUED)
        return
    valued = {"dhcpcd": DHCPCD_VALUED, "udhcpc": UDHCPC_VALUED, "connman": CONNMAN_VALUED}[kind]
    options, names = _getopt(rest, valued)
    if kind == "udhcpc":
        yield kind, (next((value for key, value in options if key in ("i", "interface")), "eth0"),)
    elif kind == "dhcpcd":
        if not DHCPCD_OTHER & {key for key, _ in options}:
            yield kind, names
    else:
        yield kind, tuple(one for key, value in options if key in ("i", "device") for one in value.split(","))


def _names(words: Sequence[str], valued: frozenset[str]) -> tuple[str, ...]:
    found, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in valued
        else:
            found.append(word)
    return tuple(found)


def _getopt(words: Sequence[str], valued: frozenset[str]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Options with their values, and what is left, as getopt_long(3) tells them apart; of a long option the value is
    known where it stands behind ``=``, or is ``interface``'s."""
    options: list[tuple[str, str]] = []
    names: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            options.append((key, value or (left.pop(0) if key in ("interface", "device") and left else "")))
        elif word.startswith("-") and len(word) > 1:
            for place, letter in enumerate(word[1:], 2):
                if letter in valued:
                    options.append((letter, word[place:] or (left.pop(0) if left else "")))
                    break
                options.append((letter, ""))
        else:
            names.append(word)
    return options, tuple(names)
