"""Raw batches: framing against fixed bytes, order of steps, answers that lie."""

from __future__ import annotations

import struct

import pytest

from gateway.kernel.nft import element
from gateway.kernel.nft.message import ERROR, answers, attributes
from gateway.kernel.plan import LearnedChange, Verdict

CHANGE = LearnedChange(0, 4, 0xC0000201, None, Verdict.USER, 60)


def messages(data):
    """(kind, flags, sequence, payload) of each message."""
    while data:
        length, kind, flags, sequence, port = struct.unpack_from("=IHHII", data)
        assert length % 4 == 0
        assert port == 0
        yield kind, flags, sequence, data[16:length]
        data = data[length:]


def test_a_batch_by_hand():
    datagram, last = element.batch([element.steps(CHANGE)], 7)
    begin, new, end = messages(datagram)
    assert begin == (16, 1, 7, bytes.fromhex("0000000a"))
    assert end == (17, 1, 9, bytes.fromhex("0000000a"))
    assert new[:3] == (0x0A0C, 0x405, 8)
    assert last == 8
    found = attributes(new[3][4:])
    assert found[1] == b"gateway\0"
    assert found[2] == b"learned4_0_user\0"
    (inner,) = attributes(found[3]).values()
    parts = attributes(inner)
    assert attributes(parts[1]) == {1: bytes.fromhex("c0000201")}
    assert parts[4] == (60_000).to_bytes(8, "big")


def test_old_is_added_and_deleted_before_new_is_added():
    change = CHANGE._replace(old=Verdict.DIRECT, new=Verdict.SNIFF)
    assert [(step.add, step.set) for step in element.steps(change)] == [
        (True, "learned4_0_direct"),
        (False, "learned4_0_direct"),
        (True, "learned4_0_sniff"),
    ]


def test_only_the_last_message_asks_for_an_answer():
    changes = [CHANGE._replace(address=n, old=Verdict.USER, new=Verdict.DIRECT) for n in range(100)]
    datagram, last = element.batch([element.steps(change) for change in changes], 1)
    assert [sequence for _, flags, sequence, _ in messages(datagram) if flags & 4] == [last]


def test_a_full_batch_fits_netlink():
    changes = [CHANGE._replace(family=6, address=n, old=Verdict.USER, new=Verdict.DIRECT) for n in range(element.CHUNK)]
    datagram, _ = element.batch([element.steps(change) for change in changes], 1)
    assert len(datagram) < 200_000
    assert all(len(payload) < 65_000 for *_, payload in messages(datagram))


def test_changes_of_one_address_become_one():
    changes = [CHANGE, CHANGE._replace(old=Verdict.USER, new=None), CHANGE._replace(old=None, new=Verdict.SNIFF)]
    assert element.collapse(changes) == [CHANGE._replace(old=None, new=Verdict.SNIFF)]


def test_an_address_of_the_wrong_family_is_refused():
    with pytest.raises(OverflowError):
        element.steps(CHANGE._replace(address=1 << 40))


def test_answers():
    good = struct.pack("=IHHII", 36, ERROR, 0, 5, 1) + struct.pack("=i", 0) + bytes(16)
    bad = struct.pack("=IHHII", 36, ERROR, 0, 6, 1) + struct.pack("=i", -2) + bytes(16)
    assert [(found.sequence, found.errno) for found in answers(good + bad)] == [(5, 0), (6, 2)]


@pytest.mark.parametrize("length", [0, 15, 37, 0xFFFFFFFF])
def test_lengths_that_lie(length):
    with pytest.raises(ValueError, match="length"):
        list(answers(struct.pack("=IHHII", length, ERROR, 0, 5, 1) + bytes(20)))
    with pytest.raises(ValueError, match="length"):
        attributes(struct.pack("=HH", min(length, 0xFFFF), 1) if length != 15 else b"\x0f\0\1\0")
