"""A gateway that serves very many flows: libnftables, which knows no file number above 1023, goes on working."""

from __future__ import annotations

import sys

import pytest

from .whole import ROOT

pytestmark = pytest.mark.root

SCRIPT = """
import os
from gateway.core.errors import KernelError
from gateway.kernel import descriptors
from gateway.kernel.nft.library import Library

descriptors.raise_limit()
{keep}
files = [os.open(os.devnull, os.O_RDONLY) for _ in range({files})]
for _ in range(20):
    try:
        library = Library()
        library.run("list tables")
        print(library.fd < 1024, end=" ")
    except KernelError as error:
        print(error)
        break
owned = [Library(first=True) for _ in range({owned})]
for library in owned:
    library.run("list tables")
others = {{int(name) for name in os.listdir("/proc/self/fd")}} - {{library.fd for library in owned}}
print(all(library.fd > max(fd for fd in others if fd < 1016) and library.fd < 1024 for library in owned))
"""


def said(net, **words: object) -> list[str]:
    done = net.gateway.run([sys.executable, "-c", SCRIPT.format(**words)], cwd=ROOT, check=True)
    return str(done.out).strip().split()


@pytest.mark.parametrize("files", [0, 1100])
def test_file_numbers_that_libnftables_knows(net, files: int) -> None:
    """And the sockets of owned tables have the highest of them."""
    assert said(net, keep="descriptors.keep()", files=files, owned=4) == ["True"] * 21


def test_without_such_a_number_it_is_refused(net) -> None:
    """And not aborted."""
    assert " ".join(said(net, keep="", files=1100, owned=0)) == "libnftables: Too many open files True"
