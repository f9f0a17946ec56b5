"""JSON object of type ``urltest``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gateway.config.fields import Duration
from gateway.config.shared import Options
from gateway.config.url import URL

PAGE = "https://www.gstatic.com/generate_204"
INTERVAL, IDLE, TOLERANCE = 180.0, 1800.0, 50


class OutboundOptions(Options, kw_only=True):
    """``url`` is asked for through each of ``outbounds`` every ``interval`` while the group is used, until it was not
    for ``idle_timeout``. Another member takes over when it is more than ``tolerance`` milliseconds quicker; with
    ``interrupt_exist_connections`` flows through the former one end. What is empty or 0 is the default."""

    outbounds: list[str]
    url: str = PAGE
    interval: Duration = Duration(INTERVAL)
    tolerance: Annotated[int, msgspec.Meta(ge=0, le=65535)] = TOLERANCE
    idle_timeout: Duration = Duration(IDLE)
    interrupt_exist_connections: bool = False

    def __post_init__(self) -> None:
        if not self.outbounds:
            raise ValueError("a urltest needs at least one outbound")
        self.url = self.url or PAGE
        URL.parse(self.url)
        self.interval = self.interval or Duration(INTERVAL)
        self.idle_timeout = self.idle_timeout or Duration(IDLE)
        self.tolerance = self.tolerance or TOLERANCE
        if self.interval < 0 or self.idle_timeout < self.interval:
            raise ValueError("interval must not be longer than idle_timeout")
