"""What ``explain`` says of a flow before it is driven, held against what the far end saw of it.

The gateway is asked over its control socket. Only this is asked of it; what happened is told by others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.core.errors import GatewayError
from gateway.service.control import ask

ROUTED = 62
"""TTL that is left of a LAN host's 64 after two routers; a connection that the gateway ends and dials anew has 63."""


class CheckError(Exception):
    """What was seen is not what should be."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise CheckError(message)


@dataclass(frozen=True, slots=True)
class Forecast:
    """``way``: the outbound's tag, or ``reject``. ``place``: ``kernel`` or ``userspace``. ``by``: a rule or ``final``.
    ``routed``: it is a LAN host's flow, so that its TTL tells who carried it."""

    way: str
    place: str
    by: str
    routed: bool

    def __str__(self) -> str:
        return f"{self.place} {self.way} by {self.by}"

    def held(self, way: str, ttl: int | None = None) -> None:
        """Raises CheckError unless the flow went ``way``; ``ttl``, where it is known, must tell the same place."""
        expect(self.way == way, f"predicted {self}, but it went {way}")
        if way == "direct" and self.routed and ttl is not None:
            place = "kernel" if ttl == ROUTED else "userspace"
            expect(place == self.place, f"predicted {self}, but TTL {ttl} tells of {place}")


def forecast(folder: Path, destination: str, **more: Any) -> Forecast:
    """Asks the gateway of ``folder``; ``more`` as ``explain`` takes it. Raises CheckError where it does not answer."""
    request = {"command": "explain", "network": "tcp", "port": 80, "destination": destination, **more}
    try:
        answer = ask(folder, request)
    except GatewayError as error:
        raise CheckError(f"no prediction: {error}") from None
    expect(answer.get("ok"), f"no prediction: {answer.get('error')}")
    way = answer["outbound"] or str(answer["action"]).lower()
    by = f"rule {answer['rule']}" if answer["rule"] >= 0 else "final"
    return Forecast(way, answer["where"], by, bool(request.get("source")))
