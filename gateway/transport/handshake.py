"""What stands between a connection to a proxy and the flow's own bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.core.errors import DialError, LocalError, PeerError
from gateway.core.stream import Stream


@contextmanager
def handshake(protocol: str, stream: Stream) -> Iterator[None]:
    """``stream`` is closed where the block fails. What the connection, the server or a bound of time ends it with is
    raised as DialError, stage "handshake"; ``protocol`` begins its message."""
    try:
        yield
    except (OSError, PeerError, LocalError) as error:
        stream.close()
        raise DialError(f"{protocol}: {str(error) or 'timeout'}", "handshake") from error
    except BaseException:
        stream.close()
        raise
