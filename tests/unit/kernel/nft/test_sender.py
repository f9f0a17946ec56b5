"""Who sent a datagram: the question against fixed bytes, answers that lie, a kernel that has no such maps."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gateway.core.errors import KernelError
from gateway.kernel.nft import sender
from gateway.kernel.nft.sender import Senders

QUESTION = (
    "01000000"  # family inet
    "0c000100 6761746577617900"  # table gateway
    "0c000200 73656e6465723400"  # set sender4
    "14000380 10000180 0c000180 08000100 c0000207"  # elements, element, key, value
)
ANSWER = (  # of Linux 6.18
    "01000003 0c000100 6761746577617900 0c000200 73656e6465723400"
    "3c000300 38000100 0c000100 08000100 c0000207 10000200 0a000100 005300000001 0000"  # key, data
    "0c000400 0000000000001388 0c000500 0000000000001388"  # timeout, expiration
)


class Kernel:
    """Answers with these bytes."""

    answer: bytes | None = None
    asked: list[tuple[int, bytes]]

    def __init__(self, protocol: int) -> None:
        assert protocol == 12
        Kernel.asked = []

    def ask(self, kind: int, body: bytes) -> bytes | None:
        self.asked.append((kind, body))
        return self.answer


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch):
    """What is found where the kernel answers so."""

    def find(answer: bytes | None) -> bytes:
        monkeypatch.setattr(Kernel, "answer", answer)
        return Senders().find(ip_address("192.0.2.7"))

    monkeypatch.setattr(sender, "Lookup", Kernel)
    return find


def test_question_and_answer(found):
    assert found(bytes.fromhex(ANSWER)).hex(":") == "00:53:00:00:00:01"
    assert Kernel.asked == [(10 << 8 | 13, bytes.fromhex(QUESTION))]


def test_who_is_not_there(found):
    assert found(None) == b""


@pytest.mark.parametrize("size", [40, 44, 50, 70])
def test_an_answer_that_is_none(found, size):
    with pytest.raises(KernelError, match="nft elements"):
        found(bytes.fromhex(ANSWER)[:size])


def test_a_kernel_without_nf_tables(monkeypatch):
    def refuse(protocol: int) -> None:
        raise KernelError("open netlink 12", 93)

    monkeypatch.setattr(sender, "Lookup", refuse)
    senders = Senders()
    assert senders.find(ip_address("2001:db8::7")) == b""
    senders.close()
