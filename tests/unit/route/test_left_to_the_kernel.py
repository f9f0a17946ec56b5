"""Six configurations as people write them, with real lists: how much of what is direct the kernel keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import catalog
from gateway.config.load import load, read
from gateway.core.address import Address
from gateway.core.flow import Flow
from gateway.kernel.plan import Verdict
from gateway.prediction import kinds
from gateway.route.compile import MOST_PROFILES, Compiled, Inputs, compile_rules
from gateway.route.engine import Engine
from gateway.route.match import Rule
from gateway.route.options import parse_route
from gateway.route.ruleset.load import load_all
from tests.unit.route import brute
from tests.unit.route.judge import Shown, decide
from tests.unit.route.traffic import LISTS, Seen, Traffic

ROOT = Path(__file__).resolve().parents[3]
VECTORS = sorted((ROOT / "tests/vectors/steering").glob("*.json"))
SHARED = ROOT.parent / "shared" / "data" / "rule-set"
FLOWS = 3000
USERS = {"root": 0, "www-data": 33, "_chrony": 116, "alice": 1001, "bob": 1002}


@pytest.fixture(scope="module")
def lists() -> dict[str, tuple[Rule, ...]]:
    if not SHARED.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: no rule sets in {SHARED}")
    tags = sorted({tag for entry in LISTS for tag in entry[:2] if tag})
    return load_all(
        parse_route({"rule_set": [{"type": "local", "tag": tag, "path": f"{tag}.srs"} for tag in tags]}), SHARED
    )


class Way:
    """A configuration in both planes."""

    def __init__(self, file: Path) -> None:
        config = load(read([str(file)]), catalog)
        self.kinds = kinds(config)
        self.engine = Engine(config.route.rules, config.route.final, load_all(config.route, SHARED))
        inputs = Inputs(self.kinds, users=USERS, groups={})
        self.compiled: Compiled = compile_rules(self.engine.rules, self.engine.final, self.engine.sets, inputs)

    def kernel(self, seen: Seen, owners: tuple[str, ...]) -> Verdict:
        family: Any = seen.address.version
        where = (seen.network, seen.port, family, int(seen.address))
        if seen.process is None:
            source = Address.of(seen.source, 0).ip
            assert source is not None
            return self.compiled.lookup(*where, source=int(source), names=owners)[1]
        mask = brute.socket_mask(self.compiled, seen.process)
        socket = dict(self.compiled.processes.classes).get(mask, 30)
        return self.compiled.lookup(*where, socket=socket, names=owners)[1]

    def userspace(self, seen: Seen) -> Any:
        """``direct``, ``reject``, ``drop`` or something that only userspace does."""
        ends = Address.of(seen.source, seen.source_port), Address(seen.address, seen.port)
        flow = Flow(seen.network, "gateway", "tproxy", *ends, "", seen.process)
        done = decide(self.engine, flow, Shown(seen.protocol, seen.name), seen.owners).decision
        if done.action == "route":
            return self.kinds[done.outbound]
        return done.method if done.method == "drop" else done.action


@pytest.mark.parametrize("file", VECTORS, ids=lambda file: file.stem)
def test_direct_flows_stay_in_the_kernel(
    file: Path, lists: dict[str, tuple[Rule, ...]], figure: Callable[[str], None]
) -> None:
    way = Way(file)
    direct: Counter[tuple[bool, bool]] = Counter()
    mix: Counter[str] = Counter()
    for seen in Traffic(lists, 1).flows(FLOWS, local=file.stem == "per-user"):
        kernel, wanted = way.kernel(seen, seen.owners), way.userspace(seen)
        mix[wanted] += 1
        if kernel in (Verdict.DIRECT, Verdict.REJECT, Verdict.DROP) and wanted != kernel.name.lower():
            # Believed of an address of which another name was looked up: what mode strict accepts.
            assert seen.owners, seen
            assert not seen.looked_up, seen
            mix["misled"] += 1
        if wanted == "direct":
            direct[seen.looked_up, kernel is Verdict.DIRECT] += 1
            if seen.looked_up and kernel is not Verdict.DIRECT:
                alone = {way.kernel(seen, (name,)) for name in seen.owners}
                assert len(alone) > 1, f"not for other names at the same address: {seen}"
    share, others = (
        direct[known, True] / max(1, direct[known, True] + direct[known, False]) for known in (True, False)
    )
    named, unnamed = (direct[known, True] + direct[known, False] for known in (True, False))
    figure(
        f"of direct flows {share:.1%} of {named} with a name stay in the kernel, {others:.1%} of {unnamed} without; "
        f"{dict(mix)}; {len(way.compiled.steering.profiles)} profiles"
    )
    assert len(way.compiled.steering.profiles) < MOST_PROFILES
    assert mix["direct"] > FLOWS / 20
    assert share >= 0.95
