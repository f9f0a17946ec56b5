"""Runs in the router's namespace: tproxy and redirect inbounds, everything to the direct outbound. Prints one line of
JSON a flow, and READY first."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

from gateway.core.contracts import Wiring
from gateway.kernel.edge import Edge
from gateway.kernel.mark import OWN
from gateway.protocol.direct import options as direct_options
from gateway.protocol.direct import outbound as direct
from gateway.protocol.redirect import inbound as redirect
from gateway.protocol.redirect import options as redirect_options
from gateway.protocol.tproxy import inbound as tproxy
from gateway.protocol.tproxy import options as tproxy_options
from gateway.route.engine import Engine
from gateway.route.router import Router


class Nothing:
    def learned(self, address: Any, client: Any) -> tuple[str, ...]:
        return ()

    def find(self, network: Any, source: Any, destination: Any) -> None:
        return None


class Outbounds(dict[str, Any]):
    default = "direct"


class Told(Engine):
    def start(self, flow: Any, findings: Any, trace: Any = None) -> Any:
        if "quiet" not in sys.argv:
            line = [flow.network, flow.inbound, str(flow.source), str(flow.destination)]
            print(json.dumps(line), flush=True)
        return super().start(flow, findings, trace)


async def main() -> None:
    edge = Edge(asyncio.get_running_loop())
    nothing: Any = Nothing()
    outbounds: Any = Outbounds()
    wiring = Wiring(edge, nothing, nothing, outbounds, nothing, nothing, mark=OWN)
    outbounds["direct"] = direct.Outbound("direct", direct_options.OutboundOptions(), wiring)
    wiring.router = Router(Told((), "direct"), wiring)
    first = tproxy.Inbound("tproxy", tproxy_options.InboundOptions(listen="::", listen_port=7893), wiring)
    second = redirect.Inbound("redirect", redirect_options.InboundOptions(listen_port=7894), wiring)
    await first.start()
    await second.start()
    print("READY", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
