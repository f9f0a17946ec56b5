"""A handshake that fails leaves no connection, and says how."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.core.errors import AuthError, DialError, LocalError, PeerError
from gateway.core.stream import Stream
from gateway.transport.handshake import handshake


class Closing:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(104, "reset"), "proto: [Errno 104] reset"),
        (PeerError("not ours"), "proto: not ours"),
        (LocalError("too long"), "proto: too long"),
        (TimeoutError(), "proto: timeout"),
    ],
)
def test_it_is_a_failed_dial(error: Exception, said: str) -> None:
    stream = Closing()
    with pytest.raises(DialError) as caught, handshake("proto", cast(Stream, stream)):
        raise error
    assert (str(caught.value), caught.value.stage, stream.closed) == (said, "handshake", True)


@pytest.mark.parametrize("error", [AuthError("wrong"), asyncio.CancelledError()])
def test_what_is_no_failure_of_the_dial_goes_on_as_it_is(error: BaseException) -> None:
    stream = Closing()
    with pytest.raises(type(error)), handshake("proto", cast(Stream, stream)):
        raise error
    assert stream.closed


def test_what_is_done_keeps_its_connection() -> None:
    stream = Closing()
    with handshake("proto", cast(Stream, stream)):
        pass
    assert not stream.closed
