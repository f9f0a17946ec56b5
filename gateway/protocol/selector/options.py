"""JSON object of type ``selector``."""

from __future__ import annotations

from gateway.config.shared import Options


class OutboundOptions(Options, kw_only=True):
    """At start what was chosen last, where that is stored (``cache_file``), else ``default``, else the first of
    ``outbounds``. With ``interrupt_exist_connections`` a change ends the flows that run through the group."""

    outbounds: list[str]
    default: str = ""
    interrupt_exist_connections: bool = False

    def __post_init__(self) -> None:
        if not self.outbounds:
            raise ValueError("a selector needs at least one outbound")
        if self.default and self.default not in self.outbounds:
            raise ValueError(f'default "{self.default}" is not one of outbounds')
