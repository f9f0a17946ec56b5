"""What this host can do for the gateway, one finding each: the record behind ``doctor`` and ``check --host``. Nothing
is changed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from gateway.core.errors import KernelError
from gateway.kernel.probe.diversions import earlier_hooks, flowtables, foreign_chains
from gateway.kernel.probe.features import bpf, capabilities, nft_features, programs, tun_device
from gateway.kernel.probe.finding import Finding
from gateway.kernel.probe.limits import conntrack, descriptors
from gateway.kernel.probe.marks import foreign_marks, ip_rules
from gateway.kernel.probe.neighbours import beside, legacy
from gateway.kernel.probe.policies import foreign_policies
from gateway.kernel.probe.ruleset import Ruleset, read
from gateway.kernel.probe.settings import bridged, rp_filter

__all__ = ["Finding", "bpf", "conflicts", "probe", "tunnel"]

Look = Callable[[], Iterable[Finding]]
BY_RULES: tuple[Callable[[Ruleset], Iterator[Finding]], ...] = (
    rp_filter, bridged, beside, foreign_chains, foreign_policies, foreign_marks, earlier_hooks, flowtables,
)  # fmt: skip


def probe() -> tuple[Finding, ...]:
    """All findings. Never raises: what could not be looked at is a finding that is not ok."""
    return (*_looked(capabilities, nft_features, bpf), *conflicts(), *_looked(programs))


def tunnel(alone: bool = True) -> tuple[Finding, ...]:
    """Findings on what a ``tun`` inbound needs; not ``alone``: beyond what ``probe`` looks at."""
    looks: tuple[Look, ...] = (capabilities, nft_features, tun_device) if alone else (tun_device,)
    return tuple(finding for finding in _looked(*looks) if finding.needed)


def conflicts() -> tuple[Finding, ...]:
    """Those of what others have set up here, and of the room that is left. Never raises."""
    return (*_looked(conntrack, descriptors, ip_rules, legacy), *_by_rules())


def _by_rules() -> Iterator[Finding]:
    ruleset = Ruleset()
    try:
        ruleset = read()
    except (OSError, ValueError, subprocess.SubprocessError, LookupError, TypeError) as error:
        yield Finding("rules", False, f"could not be looked at: {error}")
    for table in ruleset.unread:
        yield Finding("rules", False, f"table {' '.join(table)}: this nft breaks off its list as JSON", needed=False)
    for look in BY_RULES:
        yield from _guarded(look.__name__, partial(look, ruleset))


def _looked(*looks: Look) -> Iterator[Finding]:
    for look in looks:
        yield from _guarded(getattr(look, "__name__", ""), look)


def _guarded(name: str, look: Look) -> Iterator[Finding]:
    try:
        yield from look()
    except (OSError, KernelError, ValueError, subprocess.SubprocessError) as error:
        yield Finding(name.replace("_", "-"), False, f"could not be looked at: {error}")
    except (LookupError, TypeError, AttributeError) as error:  # a listing of a shape that we do not know
        yield Finding(name.replace("_", "-"), False, f"could not be looked at: {error!r}")
