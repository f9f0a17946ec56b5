"""Rules to kernel verdicts: direct or reject exactly where every completion of what a packet hides agrees. Pure.

What a packet shows: network, destination address and port, interface, hardware and IP address of its source (forwarded)
or socket class (local). What it
hides: the name (unless learned), the protocol, the source port, and the process where BPF does not tell. Destination
and source addresses are cut into segments on which all address items answer alike, ports likewise; each combination
narrows the program of the rules (``program``), equal programs are one profile, and each distinct answer of the address
items in a profile is searched once.

Modes: ``paranoid`` never believes learned names, and that DNS may be spoken on any port; ``strict`` believes names, and
that DNS is spoken on port 53 alone (else the usual "hijack DNS" rule would send every flow to userspace); ``balanced``
lets an unknown address go directly where an address rule sends it, as if nothing could be sniffed; ``fast`` does so for
every verdict of an address rule; ``off`` sends everything to userspace. Which rules those two do not wait for is told
(``Compiled.skipped``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from gateway.core.flow import Findings, Flow
from gateway.kernel import mark
from gateway.kernel.plan import (
    LAST_UID,
    DeviceRow,
    Family,
    Origin,
    PortRow,
    ProcessPlan,
    Profile,
    SourceClass,
    SourceSpan,
    Span,
    Steering,
    Verdict,
)
from gateway.route.action import BUILT_SNIFFERS, SERVER_FIRST, has_options
from gateway.route.device import DeviceAtoms
from gateway.route.feasible import Names, Vectors
from gateway.route.item.names import NameItem
from gateway.route.logic import atoms as atoms_of
from gateway.route.match import Sets, Subject
from gateway.route.options import RouteRule
from gateway.route.process import ProcessAtoms
from gateway.route.program import (
    USER,
    End,
    Kind,
    Program,
    Search,
    Stay,
    build,
    settle,
    skipped,
    specialise,
    stays,
    verdict,
)
from gateway.route.sweep import Segment, sweep

Mode = Literal["paranoid", "strict", "balanced", "fast", "off"]
MOST_PROFILES = 64
"""One of them is the profile that sniffs everything, once more would be needed. Each kind of device that rules tell
apart takes about three: ports of DNS, ports where the server speaks first, all the others."""
MOST_CLASSES = 30
"""Socket classes 0..29."""
MOST_MASKS = 4096
"""Rows of the mask map in BPF; masks beyond are UNKNOWN sockets."""
TOP = {4: (1 << 32) - 1, 6: (1 << 128) - 1}
MOST_REMEMBERED = 8192
"""Names, and verdicts of named flows, that are remembered; all are forgotten at the bound."""
DNS_PORT = 53
FAMILIES: tuple[Family, Family] = (4, 6)
STAYS = frozenset({End("direct")})
OPEN = frozenset({End("?"), End("??")})
Pair = tuple[Program, Program]
"""The program of a profile, for IPv4 and for IPv6."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the compiler needs besides rules. ``kinds``: outbound tag to what it comes to (groups already followed to
    their leaf); "direct" only for a direct outbound without dial options. ``inbound``: tag under which captured flows
    enter. ``users``, ``groups``: name to number of those that this host knows. ``hostnames``: hardware address to the
    name in its lease. ``learn``: names of addresses are heard of at all. ``fakes``: prefixes of fake
    addresses, whose flows are userspace's."""

    kinds: Mapping[str, Kind]
    inbound: str = "gateway"
    users: Mapping[str, int] | None = None
    groups: Mapping[str, int] | None = None
    hostnames: Mapping[str, str] | None = None
    mode: Mode = "strict"
    learn: bool = True
    fakes: tuple[str, ...] = ()


class Compiled:
    """``steering`` and ``processes`` go to the kernel; ``learned_verdict`` serves the learned maps. ``skipped``:
    indices of rules that the kernel does not wait for somewhere (in ``balanced`` and ``fast``)."""

    def __init__(
        self, compiler: _Compiler, steering: Steering, processes: ProcessPlan, skipped: tuple[int, ...] = ()
    ) -> None:
        self._compiler = compiler
        self.steering = steering
        self.processes = processes
        self.skipped = skipped

    @property
    def mode(self) -> Mode:
        return self._compiler.inputs.mode

    def skips(self, flow: Flow) -> tuple[int, ...]:
        """Those that could send a flow elsewhere that the kernel keeps, to an address without a name. () where the
        kernel's verdict is certain, or none."""
        return self._compiler.skips(flow)

    @property
    def learns(self) -> bool:
        """Whether names of addresses are heard of."""
        return self._compiler.inputs.learn

    def alike(self, names: Iterable[str]) -> tuple[str, ...]:
        """One name of each kind that the rules can tell apart."""
        return tuple({self._compiler.names_held(name): name for name in names}.values())

    def learned_verdict(self, profile: int, family: Family, address: int, names: tuple[str, ...]) -> Verdict:
        """What an address is in a profile once our DNS resolved ``names`` to it; () = no name. Names of different
        outcomes are SNIFF."""
        return self._compiler.named(profile, family, address, names)

    def open(self, profile: int, family: Family, address: int) -> bool:
        """Whether flows to an address without a name could be sniffed and that could matter, whatever the mode makes of
        them."""
        return self._compiler.open(profile, family, address)

    def certain(self, flow: Flow, findings: Findings) -> bool:
        """Whether no sniff can change where this flow goes (before any sniff was made), so that userspace need not
        wait for one. False where options of rules could differ."""
        return self._compiler.plain and self._compiler.certain(flow, findings)

    def keeps(self, flow: Flow, names: tuple[str, ...]) -> bool:
        """Whether a flow of this host whose process is known stays in the kernel, with these names of its address. The
        kernel does not ask for its source."""
        return self._compiler.keeps(flow, names)

    def lookup(
        self, network: str, port: int, family: Family, address: int, *, source: int | None = None,
        device: tuple[str, str] = ("", ""), socket: int | None = None, user: int = LAST_UID,
        names: tuple[str, ...] = (), steering: Steering | None = None,
    ) -> tuple[int, Verdict]:  # fmt: skip
        """(profile, verdict) as the kernel finds them: ``source`` of a forwarded flow and ``device``, its interface and
        hardware address, else the ``socket`` class, or the ``user`` where ``steering`` goes by users. ``steering``:
        what is in force, if not this object's."""
        steering = steering or self.steering
        if source is not None:
            origin = steering.origin(*device)
            spans = origin.spans4 if family == 4 else origin.spans6
            number = next((span.number for span in spans if span.first <= source <= span.last), origin.otherwise)
        elif steering.users:
            number = next(span.number for span in steering.users if span.first <= user <= span.last)
        else:
            number = dict(steering.local).get(cast(int, socket), steering.unknown)
        rows = steering.classes[number].rows
        profile = next(row.profile for row in rows if row.network == network and row.first <= port <= row.last)
        if names and steering.profiles[profile].learned:
            return profile, self.learned_verdict(profile, family, address, names)
        chosen = steering.profiles[profile]
        spans_ = chosen.spans4 if family == 4 else chosen.spans6
        at = bisect_right(spans_, address, key=lambda span: span.first) - 1
        if at >= 0 and address <= spans_[at].last:
            return profile, spans_[at].verdict
        return profile, chosen.default4 if family == 4 else chosen.default6


def compile_rules(rules: Sequence[RouteRule], final: str, sets: Sets, inputs: Inputs) -> Compiled:
    """``final``: tag of the default outbound. Raises KeyError for an unknown rule set."""
    return _Compiler(rules, final, sets, inputs).run()


class _Compiler:
    def __init__(self, rules: Sequence[RouteRule], final: str, sets: Sets, inputs: Inputs) -> None:
        self.inputs = inputs
        self.believes = inputs.learn and inputs.mode != "paranoid"
        self.plain = not any(has_options(rule.action) for rule in rules)
        self.relaxed = inputs.mode in ("balanced", "fast")
        self.program, lowering = build(rules, final, sets, inputs.kinds, inputs.fakes, by_address=self.relaxed)
        self.table, self.space = lowering.atoms, lowering.space
        self.processes = ProcessAtoms(
            {atom: entry.item for atom, entry in self.table.items() if entry.kind == "process"},
            inputs.users or {},
            inputs.groups or {},
        )
        self.owners = frozenset(self.processes.atoms)
        self.devices = DeviceAtoms(
            {atom: entry.item for atom, entry in self.table.items() if entry.kind == "device"}, inputs.hostnames or {}
        )
        self.dst = {family: self._segments("dst", family) for family in FAMILIES}
        self.dst_first = {family: [segment.first for segment in self.dst[family]] for family in FAMILIES}
        self.masks = {family: sorted({s.mask for s in self.dst[family]} | {0}) for family in FAMILIES}
        self.src = {family: self._segments("src", family) for family in FAMILIES}
        self.ports = self._ports()
        names = Names({a: cast(NameItem, e.item) for a, e in self.table.items() if e.kind == "name"})
        shared = {
            "source_port": Vectors([(segment.mask, 0) for segment in self._port_segments("source_port")]),
            "process": Vectors(self.processes.vectors()),
            "device": Vectors(self.devices.vectors()),
        }
        self.search: dict[int, Search] = {}
        for family in FAMILIES:
            sources = Vectors([(segment.mask, 0) for segment in self.src[family]])
            self.search[family] = Search(self.table, names, {**shared, "src": sources})
        self.name_atoms = self.search[4].of_kind.get("name", [])
        self.profiles: dict[Any, int] = {}
        self.pairs: list[Pair | None] = []
        self.classes: dict[tuple[PortRow, ...], int] = {}
        self._narrowed: dict[tuple[int, Family, int], Program] = {}
        self._unlearned: dict[tuple[int, Family, int], Verdict] = {}
        self._named: dict[tuple[Family, Program, frozenset[int]], frozenset[End]] = {}
        self._held: dict[str, frozenset[int]] = {}
        self._verdicts: dict[tuple[Family, Program], Verdict] = {}
        self._by_address: dict[tuple[Family, Program], str] = {}
        """Outcome of programs that the kernel judges by address, as if nothing could be sniffed."""
        self._unsettled: dict[tuple[Pair, Pair, str, frozenset[str]], int] = {}
        """Programs, what they were before ``settle``, its other arguments, to the profile; in relaxed modes only."""
        self._open: dict[tuple[Family, Program], bool] = {}

    # what is known at each stage

    def _segments(self, kind: str, family: Family) -> list[Segment]:
        sets: dict[int, Any] = {}
        for atom, entry in self.table.items():
            if entry.kind == kind:
                sets[atom] = cast(Any, entry.item).set.ranges(family)
        return sweep(sets, TOP[family])

    def _port_segments(self, kind: str) -> list[Segment]:
        return sweep({a: cast(Any, e.item).ranges for a, e in self.table.items() if e.kind == kind}, 65535)

    def _ports(self) -> list[tuple[Segment, frozenset[str]]]:
        """Port segments, and the protocols that a sniff cannot find there."""
        sets = {a: cast(Any, e.item).ranges for a, e in self.table.items() if e.kind == "port"}
        quiet, name_servers = 1 << len(self.table) + 1, 1 << len(self.table) + 2  # atoms are numbered from 1
        sets[len(self.table) + 1] = [(port, port) for port in sorted(SERVER_FIRST)]
        sets[len(self.table) + 2] = [(DNS_PORT, DNS_PORT)]
        everywhere = frozenset() if self.inputs.mode == "paranoid" else frozenset({"dns"})
        out = []
        for first, last, mask in sweep(sets, 65535):
            never = BUILT_SNIFFERS if mask & quiet else frozenset() if mask & name_servers else everywhere
            out.append((Segment(first, last, mask & ~(quiet | name_servers)), never))
        return out

    def _answers(self, kind: str, mask: int) -> dict[int, bool]:
        return {atom: bool(mask >> atom & 1) for atom, entry in self.table.items() if entry.kind == kind}

    def _static(self, network: str, family: Family) -> dict[int, bool]:
        known = {}
        for atom, (kind, item) in self.table.items():
            value: Any = item.value
            if kind == "inbound":
                known[atom] = self.inputs.inbound in value
            elif kind == "network":
                known[atom] = network in value
            elif kind == "auth_user":
                known[atom] = "" in value
            elif kind == "ip_version":
                known[atom] = value == family
            elif kind == "never":
                known[atom] = False
            elif kind == "src":
                ranges = cast(Any, item).set.ranges(family)
                if ranges in ((), ((0, TOP[family]),)):  # what no source answers otherwise is no question
                    known[atom] = bool(ranges)
        return known

    # source class -> rows -> profiles

    def run(self) -> Compiled:
        if self.inputs.mode == "off":
            self.pairs = [None]
            rows = (PortRow("tcp", 0, 65535, 0), PortRow("udp", 0, 65535, 0))
            everything = Steering((SNIFF_ALL,), (SourceClass(rows),), (Origin((), (), 0),), ((0, 0),), 0)
            return Compiled(self, everything, ProcessPlan())
        self.here = dict.fromkeys(self.devices.items, False)  # a flow of this host comes from no device
        self.base = {
            (n, f): specialise(self.space, self.program, self._static(n, f)) for n in ("tcp", "udp") for f in FAMILIES
        }
        origins, devices = self._forwarded()
        local, plan = self._local()
        unknown = self._class(self.here)
        profiles = tuple(self._profile(number) for number in range(len(self.pairs)))
        classes = tuple(SourceClass(rows) for rows in self.classes)
        steering = Steering(profiles, classes, origins, local, unknown, devices=devices)
        return Compiled(self, steering, plan, tuple(sorted(self._skipped())))

    def _skipped(self) -> set[int]:
        found: set[int] = set()
        for (pair, whole, network, never), number in self._unsettled.items():
            if self.pairs[number] is None:  # all of it is sniffed
                continue
            for family, mask in ((one, mask) for one in FAMILIES for mask in self.masks[one]):
                answers = self._answers("dst", mask)
                outcome = self._by_address.get((family, specialise(self.space, pair[family == 6], answers)))
                if outcome is not None:
                    program = specialise(self.space, whole[family == 6], answers)
                    found |= skipped(self.space, program, self.table, network, never, outcome)
        self._unsettled.clear()
        return found

    def _forwarded(self) -> tuple[tuple[Origin, ...], tuple[DeviceRow, ...]]:
        """Devices that the rules treat alike have one origin."""
        nobody = dict.fromkeys(self.processes.atoms, False)
        if not self.devices.countable:
            return (self._origin(nobody),), ()
        numbers: dict[Origin, int] = {}
        seen: dict[frozenset[int], int] = {}

        def number(interface: str, mac: str) -> int:
            known = self.devices.known(interface, mac)
            held = frozenset(atom for atom, value in known.items() if value)
            if held not in seen:
                seen[held] = numbers.setdefault(self._origin({**nobody, **known}), len(numbers))
            return seen[held]

        rows: list[DeviceRow] = []
        anywhere = {mac: number("", mac) for mac in ("", *self.devices.macs)}
        for interface in self.devices.interfaces:
            here = {mac: number(interface, mac) for mac in anywhere}
            if here != anywhere:
                rows += [DeviceRow(interface, mac, one) for mac, one in here.items() if not mac or one != here[""]]
        rows += [DeviceRow("", mac, one) for mac, one in anywhere.items() if one]
        return tuple(numbers), tuple(rows)

    def _origin(self, known: Mapping[int, bool]) -> Origin:
        otherwise = self._class({**known, **self._answers("src", 0)})
        spans: dict[int, tuple[SourceSpan, ...]] = {}
        numbers = {0: otherwise}
        for family in FAMILIES:
            found: list[SourceSpan] = []
            for first, last, mask in self.src[family]:
                if mask not in numbers:
                    numbers[mask] = self._class({**known, **self._answers("src", mask)})
                number = numbers[mask]
                if number == otherwise:
                    continue
                if found and found[-1].last + 1 == first and found[-1].number == number:
                    found[-1] = SourceSpan(found[-1].first, last, number)
                else:
                    found.append(SourceSpan(first, last, number))
            spans[family] = tuple(found)
        return Origin(spans[4], spans[6], otherwise)

    def _local(self) -> tuple[tuple[tuple[int, int], ...], ProcessPlan]:
        """Socket classes: combinations of process atoms that the rules treat alike."""
        sockets: dict[int, int] = {self._class({**self.here, **self.processes.known(0)}): 0}
        rows = [(0, 0)]
        for bits in self.processes.masks():
            if not bits or len(rows) == MOST_MASKS:
                continue
            number = self._class({**self.here, **self.processes.known(bits)})
            if number not in sockets:
                if len(sockets) == MOST_CLASSES:
                    continue  # not listed: an UNKNOWN socket, which goes to userspace
                sockets[number] = len(sockets)
            rows.append((bits, sockets[number]))
        if len(rows) == 1 and not self.processes.atoms:
            return ((0, next(iter(sockets))),), ProcessPlan()
        assert len(sockets) <= mark.UNKNOWN
        local = tuple((socket, number) for number, socket in sockets.items())
        return local, self.processes.plan(tuple(rows))

    def _class(self, known: Mapping[int, bool]) -> int:
        """Number of the source class of which ``known`` is known."""
        rows: list[PortRow] = []
        for network in ("tcp", "udp"):
            programs = [specialise(self.space, self.base[network, family], known) for family in FAMILIES]
            seen: dict[tuple[int, frozenset[str]], int] = {}
            for (first, last, mask), never in self.ports:
                if (mask, never) not in seen:
                    ports = self._answers("port", mask)
                    whole = tuple(specialise(self.space, one, ports) for one in programs)
                    pair = cast(Pair, tuple(settle(self.space, one, self.table, network, never) for one in whole))
                    seen[mask, never] = self._number(pair)
                    if self.relaxed:
                        self._unsettled[pair, cast(Pair, whole), network, never] = seen[mask, never]
                profile = seen[mask, never]
                if rows and rows[-1].network == network and rows[-1].profile == profile:
                    rows[-1] = rows[-1]._replace(last=last)
                else:
                    rows.append(PortRow(cast(Any, network), first, last, profile))
        return self.classes.setdefault(tuple(rows), len(self.classes))

    def _number(self, pair: Pair) -> int:
        """Profile number of a program: equal programs, or equal verdicts where names play no part."""
        number = self.profiles.get(pair)
        if number is not None:
            return number
        key: Any = None
        if not self._learns(pair):
            key = tuple(self._address(pair, family, mask) for family in FAMILIES for mask in self.masks[family])
            number = self.profiles.get(key)
        if number is None:
            number = len(self.pairs)
            if number == MOST_PROFILES - 1:  # the last one takes all the rest
                self.pairs.append(None)
            elif number == MOST_PROFILES:
                number = MOST_PROFILES - 1
            else:
                self.pairs.append(pair)
        self.profiles[pair] = number
        if key is not None:
            self.profiles.setdefault(key, number)
        return number

    # profile -> verdicts

    def _profile(self, number: int) -> Profile:
        pair = self.pairs[number]
        if pair is None:
            return SNIFF_ALL
        spans: list[tuple[Span, ...]] = []
        defaults = []
        for family in FAMILIES:
            verdicts = {mask: self._address(pair, family, mask) for mask in self.masks[family]}
            default = verdicts[0]
            found: list[Span] = []
            for first, last, mask in self.dst[family]:
                one = verdicts[mask]
                if found and found[-1].verdict == one and found[-1].last + 1 == first:
                    found[-1] = Span(found[-1].first, last, one)
                elif one != default:
                    found.append(Span(first, last, one))
            spans.append(tuple(found))
            defaults.append(default)
        return Profile(spans[0], spans[1], defaults[0], defaults[1], self._learns(pair))

    def _learns(self, pair: Pair) -> bool:
        if not self.believes:
            return False
        used = {atom for program in pair for condition, _ in program for atom in atoms_of(condition)}
        return any(self.table[atom].kind == "name" for atom in used)

    def _address(self, pair: Pair, family: Family, mask: int) -> Verdict:
        """Of an address without a name."""
        return self._nameless(family, specialise(self.space, pair[family == 6], self._answers("dst", mask)))

    def _nameless(self, family: Family, program: Program) -> Verdict:
        found = self._verdicts.get((family, program))
        if found is None:
            match stays(program, self.owners, lambda part: self._unnamed_ends(family, part)):
                case True:
                    found = Verdict.DIRECT
                case None:
                    found = Verdict.SNIFF
                case False:
                    found = self._unnamed(family, program)
            self._verdicts[family, program] = found
        return found

    def _unnamed(self, family: Family, program: Program) -> Verdict:
        found = verdict(self._unnamed_ends(family, program))
        if found is Verdict.SNIFF and self.relaxed:
            ends = self.search[family].outcomes(program, None, sniff=False)
            certain = verdict(ends)
            if all(end.by_address for end in ends) and (certain is Verdict.DIRECT or self.inputs.mode == "fast"):
                if certain in USER.values():
                    self._by_address[family, program] = next(iter(ends)).outcome
                return certain
        return found

    def _unnamed_ends(self, family: Family, program: Program) -> set[End]:
        return self.search[family].outcomes(program, None, doubt=self.inputs.mode == "paranoid")

    def _narrow(self, number: int, family: Family, mask: int) -> Program:
        key = (number, family, mask)
        if key not in self._narrowed:
            pair = self.pairs[number]
            assert pair is not None
            self._narrowed[key] = specialise(self.space, pair[family == 6], self._answers("dst", mask))
        return self._narrowed[key]

    def named(self, number: int, family: Family, address: int, names: tuple[str, ...]) -> Verdict:
        pair = self.pairs[number]
        if pair is None:
            return Verdict.SNIFF
        mask = self.dst[family][bisect_right(self.dst_first[family], address) - 1].mask
        if not names or not self.believes:
            key = (number, family, mask)
            if key not in self._unlearned:
                self._unlearned[key] = self._address(pair, family, mask)
            return self._unlearned[key]
        program = self._narrow(number, family, mask)
        ends: set[End] = set()
        for name in names:
            ends |= self._ends_of(family, program, self.names_held(name))
        return verdict(ends)

    def open(self, number: int, family: Family, address: int) -> bool:
        pair = self.pairs[number]
        if pair is None:
            return True
        mask = self.dst[family][bisect_right(self.dst_first[family], address) - 1].mask
        if self.inputs.mode == "strict":
            return self.named(number, family, address, ()) is Verdict.SNIFF
        program = self._narrow(number, family, mask)
        if (family, program) not in self._open:
            search = self.search[family]
            sure = stays(program, self.owners, lambda part: search.outcomes(part, None))
            self._open[family, program] = sure is None or (not sure and len(search.outcomes(program, None)) > 1)
        return self._open[family, program]

    def _ends_of(self, family: Family, program: Program, held: frozenset[int]) -> frozenset[End]:
        key = (family, program, held)
        found = self._named.get(key)
        if found is None:
            if len(self._named) >= MOST_REMEMBERED:
                self._named.clear()
            answers = {atom: atom in held for atom in self.name_atoms}
            search = self.search[family]
            match stays(program, self.owners, lambda part: search.outcomes(part, answers)):
                case True:
                    found = STAYS
                case None:
                    found = OPEN
                case False:
                    found = frozenset(search.outcomes(program, answers))
            self._named[key] = found
        return found

    def names_held(self, name: str) -> frozenset[int]:
        """Name atoms that hold for ``name``."""
        found = self._held.get(name)
        if found is None:
            if len(self._held) >= MOST_REMEMBERED:
                self._held.clear()
            atoms = self.name_atoms
            found = frozenset(atom for atom in atoms if cast(NameItem, self.table[atom].item).holds(name))
            self._held[name] = found
        return found

    def _known(self, subject: Subject) -> dict[int, bool]:
        """What a flow shows before any sniff, but for names."""
        known: dict[int, bool] = {}
        for atom, (kind, item) in self.table.items():
            if kind == "src":
                known[atom] = subject.source is not None and subject.source in cast(Any, item).set
            elif kind not in ("protocol", "client", "name"):
                known[atom] = item.match(subject)
        return known

    def skips(self, flow: Flow) -> tuple[int, ...]:
        if not self.relaxed or flow.destination.ip is None:
            return ()
        family: Family = 4 if flow.destination.ip.version == 4 else 6
        known = self._known(Subject.of(flow, Findings(), {}))
        known = {atom: value for atom, value in known.items() if self.table[atom].kind != "source_port"}
        whole = specialise(self.space, self.program, known)
        never = next(never for (first, last, _), never in self.ports if first <= flow.destination.port <= last)
        program = settle(self.space, whole, self.table, flow.network, never)
        self._nameless(family, program)
        outcome = self._by_address.get((family, program))
        if outcome is None:
            return ()
        return tuple(sorted(skipped(self.space, whole, self.table, flow.network, never, outcome)))

    def keeps(self, flow: Flow, names: tuple[str, ...]) -> bool:
        if flow.destination.ip is None or self.inputs.mode == "off":
            return False
        family: Family = 4 if flow.destination.ip.version == 4 else 6
        known = self._known(Subject.of(flow, Findings(), {}))
        known = {atom: value for atom, value in known.items() if self.table[atom].kind not in ("src", "source_port")}
        program = specialise(self.space, self.program, known)
        never = next(never for (first, last, _), never in self.ports if first <= flow.destination.port <= last)
        program = settle(self.space, program, self.table, flow.network, never)
        if not names or not self.believes:
            return self._nameless(family, program) is Verdict.DIRECT
        ends = set[End]().union(*(self._ends_of(family, program, self.names_held(name)) for name in names))
        return verdict(ends) is Verdict.DIRECT

    def certain(self, flow: Flow, findings: Findings) -> bool:
        subject = Subject.of(flow, findings, {})
        program = tuple(step for step in self.program if not isinstance(step[1], Stay))
        program = specialise(self.space, program, self._known(subject))
        never = BUILT_SNIFFERS if flow.destination.port in SERVER_FIRST else frozenset()
        program = settle(self.space, program, self.table, flow.network, never)
        held = self.names_held(subject.name) if subject.name else frozenset()
        names = {atom: atom in held for atom in self.name_atoms}
        ends = self.search[4].outcomes(program, names, renamed=flow.destination.domain is None)
        return len({end.outcome for end in ends}) == 1


SNIFF_ALL = Profile((), (), Verdict.SNIFF, Verdict.SNIFF, False)
"""For what the other profiles have no room for."""
