"""One TCP flow that runs: what the router lists and can end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.core.account import Key
from gateway.core.address import Address
from gateway.core.flow import Findings, Flow
from gateway.route.engine import Decision
from gateway.route.relay import Relay

if TYPE_CHECKING:
    from gateway.route.entry import Entry


class RunningStream:
    """See ``core.contracts.Running``. ``entry`` or ``task`` is its handshake, then ``relay`` its bytes; one at a
    time."""

    __slots__ = ("_ended", "chain", "decision", "entry", "findings", "flow", "relay", "since", "task")

    def __init__(self, flow: Flow, since: float, ended: Callable[[RunningStream], None]) -> None:
        self.flow = flow
        self.since = since
        """Seconds of the loop's clock."""
        self.chain: tuple[str, ...] = ()
        self.decision: Decision | None = None
        """None while the rules are walked."""
        self.findings: Findings | None = None
        self.entry: Entry | None = None
        self.task: asyncio.Task[None] | None = None
        self.relay: Relay | None = None
        self._ended = ended

    @property
    def destinations(self) -> tuple[Address, ...]:
        return (self.flow.destination,)

    @property
    def name(self) -> str:
        return name_of(self.findings)

    @property
    def rule(self) -> int | None:
        return None if self.decision is None else self.decision.rule

    @property
    def key(self) -> Key:
        """Under which its bytes are counted; of one that is dialled."""
        return key_of(self.chain, self.flow)

    @property
    def up(self) -> int:
        return self.relay.up if self.relay is not None else 0

    @property
    def down(self) -> int:
        return self.relay.down if self.relay is not None else 0

    def done(self, error: BaseException | None) -> None:
        """The relay has ended."""
        self._ended(self)

    def close(self) -> None:
        if self.relay is not None:
            self.relay.close()
        elif self.entry is not None:
            self.entry.close()
        elif self.task is not None:
            self.task.cancel()


def key_of(chain: tuple[str, ...], flow: Flow) -> Key:
    return Key(chain[-1], flow.source.host, flow.process.path if flow.process is not None else "")


def name_of(findings: Findings | None) -> str:
    """What a flow was found to be called, "" for nothing."""
    if findings is None:
        return ""
    return findings.domain or next(iter(findings.learned), "")
